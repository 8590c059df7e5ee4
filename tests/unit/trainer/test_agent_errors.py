"""Errors that nobody foresaw end in a reason, not in a job that waits for ever."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trireme.checkpoints import JobKeys, Manifest
from trireme.protocol import AgentState, Failure, FailureKind, ModelRef, Phase, Settings, Target
from trireme_storage.store import StoreError
from trireme_trainer.agent import export as export_module
from trireme_trainer.agent import preparation as preparation_module
from trireme_trainer.agent.attempt import Attempt
from trireme_trainer.agent.export import ModelUpload
from trireme_trainer.agent.messages import ExportedEvent
from trireme_trainer.agent.preparation import Preparation, PreparationResult

EXPORTED = ExportedEvent(directory="/nowhere", manifest={})
MODEL = ModelRef(uri="s3://b/model", digest="sha256:0")


class RanksThatEnded:
    """No rank is left."""

    ranks: tuple[Any, ...] = ()

    async def stop(self, *, term_seconds: float) -> None:
        """Nothing is left to stop."""


def exporting(put: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An attempt whose ranks exported a model; storing it calls `put`."""
    monkeypatch.setattr(export_module, "EXPORT_RETRY_SECONDS", 0.01)
    made: Any = Attempt.__new__(Attempt)
    made.number, made.state, made.model, made.failure = 1, AgentState.RUNNING, None, None
    made.ranks = RanksThatEnded()
    made._threads = ThreadPoolExecutor(1)
    made._env = SimpleNamespace(slot=0, config=SimpleNamespace(ranks_per_slot=1))
    made._store = made._keys = None
    monkeypatch.setattr(ModelUpload, "_put", lambda upload: put(upload._event))
    return made


async def test_a_model_that_cannot_be_stored_fails_the_attempt_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(_: ExportedEvent) -> ModelRef:
        raise OSError(5, "Input/output error")

    attempt = exporting(put, monkeypatch)
    await asyncio.wait_for(attempt._upload_model(EXPORTED), 5)
    failure: Failure = attempt.failure
    assert attempt.state is AgentState.FAILED
    assert failure.kind is FailureKind.EXIT
    assert "Input/output error" in failure.message


async def test_a_model_is_stored_once_the_store_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = 0

    def put(_: ExportedEvent) -> ModelRef:
        nonlocal tries
        tries += 1
        if tries < 3 * export_module.EXPORT_TRIES:
            raise StoreError("StoreUnavailable", "away", retryable=True)
        return MODEL

    attempt = exporting(put, monkeypatch)
    await asyncio.wait_for(attempt._upload_model(EXPORTED), 5)
    assert attempt.model == MODEL
    assert attempt.state is AgentState.RUNNING


async def test_files_of_a_model_that_are_in_the_store_are_not_sent_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "EXPORT_RETRY_SECONDS", 0.01)
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    described = {"step": 1, "tokens": 1, "modelDigest": "m", "datasetDigest": "d", "layout": {}}
    sent: list[str] = []

    class Store:
        def upload(self, path: Path, key: str) -> None:
            sent.append(path.name)
            if sent == ["a.safetensors", "b.safetensors"]:
                raise StoreError("StoreUnavailable", "away", retryable=True)

        def put(self, key: str, data: bytes) -> None:
            assert len(Manifest.decode(data).files) == 2

    store: Any = Store()
    keys = JobKeys("s3://bucket/p", "default", "job", "uid")
    upload = ModelUpload(ExportedEvent(directory=str(tmp_path), manifest=described), store, keys, 1)
    with ThreadPoolExecutor(1) as threads:
        assert await asyncio.wait_for(upload.run(threads, lambda: True), 5) is not None
    assert sent == ["a.safetensors", "b.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("counts", "reason", "retryable"),
    [([3, 4], "PreparationOutOfMemory", False), ([3, 3], "PreparationFailed", True)],
    ids=["for memory", "by somebody"],
)
async def test_a_preparation_that_is_killed_is_tried_again_unless_for_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: list[int], reason: str, retryable: bool
) -> None:
    (tmp_path / "kills_itself.py").write_text("import os; os.kill(os.getpid(), 9)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(preparation_module, "count_oom_kills", iter(counts).__next__)
    target = Target(job_uid="uid", attempt=1, phase=Phase.PREPARE)
    preparation = Preparation("kills_itself", target, tmp_path / "job.json", tmp_path / "scratch")
    async with asyncio.timeout(5):
        while preparation.problem is None:  # noqa: ASYNC110 set by the preparation's own task
            await asyncio.sleep(0.01)
    assert (preparation.problem.reason, preparation.problem.retryable) == (reason, retryable)
    await preparation.stop()


async def test_a_preparation_that_stands_still_is_ended_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a mount whose server is gone; one that works may take as long as it takes."""
    monkeypatch.setattr(preparation_module, "LOOK_SECONDS", 0.05)
    (tmp_path / "stands_still.py").write_text("import time\nwhile time.process_time() < 0.7: pass\ntime.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    settings = Settings(start_timeout_seconds=0.3)
    target = Target(job_uid="uid", attempt=1, phase=Phase.PREPARE, settings=settings)
    preparation = Preparation("stands_still", target, tmp_path / "job.json", tmp_path / "scratch")
    async with asyncio.timeout(20):
        while preparation.problem is None:  # noqa: ASYNC110 set by the preparation's own task
            await asyncio.sleep(0.01)
    assert (preparation.problem.reason, preparation.problem.retryable) == ("PreparationStalled", True)
    assert preparation._process is not None
    assert await asyncio.wait_for(preparation._process.wait(), 5) == -signal.SIGKILL
    await preparation.stop()


async def test_a_preparation_that_cannot_be_run_is_a_problem_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation_module, "RETRY_SECONDS", 0.05)
    scratch = tmp_path / "scratch"
    scratch.write_text("a file where the folder should be")
    target = Target(job_uid="uid", attempt=1, phase=Phase.PREPARE)
    preparation = Preparation("no_such_module", target, tmp_path / "job.json", scratch)
    async with asyncio.timeout(5):
        while preparation.problem is None:  # noqa: ASYNC110 set by the preparation's own task
            await asyncio.sleep(0.01)
    assert preparation.problem.reason == "PreparationFailed"
    assert preparation.problem.retryable

    async def once() -> PreparationResult:
        return PreparationResult()

    monkeypatch.setattr(preparation, "_once", once)
    async with asyncio.timeout(5):
        while preparation.problem is not None:  # noqa: ASYNC110 set by the preparation's own task
            await asyncio.sleep(0.01)
    await preparation.stop()
