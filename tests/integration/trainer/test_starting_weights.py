"""A job that starts from another one's exported model begins where that one ended."""

from __future__ import annotations

from collections.abc import Callable

from gang_harness import BUCKET, Gang

from trireme.protocol import AgentState


def test_training_starts_from_an_exported_model(make_gang: Callable[..., Gang]) -> None:
    first = make_gang(name="first", workers__nodes=1, training__steps=60)
    first.start_all()
    first.form()
    report = first.wait_state(AgentState.SUCCEEDED)[0]
    first.release()
    assert report.model is not None
    assert report.model.uri.startswith(f"s3://{BUCKET}/")
    assert report.progress is not None
    assert report.progress.first_loss is not None

    changes = {"workers__nodes": 1, "training__steps": 2, "training__optimizer": {"learningRate": 1e-6}}
    second = make_gang(name="second", model__startFrom=report.model.uri, **changes)
    second.start_all()
    second.form()
    begun = second.wait_state(AgentState.SUCCEEDED)[0].progress
    assert begun is not None
    assert begun.first_loss is not None
    assert begun.first_loss < 0.95 * report.progress.first_loss
    second.release()
