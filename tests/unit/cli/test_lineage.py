"""The chain of models, for jobs and services alike."""

from typing import Any

from trireme.resources.status import InputStatus
from trireme_cli.cluster import ResourceType
from trireme_cli.jobs import Resource
from trireme_cli.lineage import chain

Json = dict[str, Any]


def resource(kind: str, name: str, uid: str, **status: Any) -> Resource:
    plural = f"{kind.lower()}s"
    named = ResourceType("trireme.dev", "v1alpha1", plural, kind.lower(), kind, True, ())
    return Resource(named, {"metadata": {"name": name, "namespace": "default", "uid": uid}, "status": status})


def made(field: str, kind: str, name: str, uid: str, digest: str) -> Json:
    return {"field": field, "kind": kind, "name": name, "uid": uid, "uri": f"s3://b/{name}", "digest": digest}


def test_a_service_ends_the_chain_with_its_model_and_adapters() -> None:
    base = resource("PretrainJob", "base", "u1", state="Succeeded", model={"uri": "s3://b/base", "digest": "d1"})
    adapter = resource(
        "FineTuneJob",
        "fr",
        "u2",
        state="Succeeded",
        model={"uri": "s3://b/fr", "digest": "d2"},
        inputs=[made("base.job", "PretrainJob", "base", "u1", "d1")],
    )
    service = resource(
        "InferenceService",
        "llama",
        "u3",
        state="Ready",
        model={"uri": "s3://b/base"},  # its digest is not known yet
        inputs=[
            made("model.job", "PretrainJob", "base", "u1", "d1"),
            made("adapters[fr].job", "FineTuneJob", "fr", "u2", "d2"),
        ],
    )
    there = {r.uid: r for r in (base, adapter)}

    def find(known: InputStatus) -> Resource | None:
        return there.get(known.uid)

    assert [(link.depth, link.job, link.state, link.digest) for link in chain(service, find)] == [
        (0, "InferenceService/llama", "Ready", ""),
        (1, "PretrainJob/base", "Succeeded", "d1"),
        (1, "FineTuneJob/fr", "Succeeded", "d2"),
        (2, "PretrainJob/base", "Succeeded", "d1"),
    ]
    del there["u2"]
    assert [link.state for link in chain(service, find)] == ["Ready", "Succeeded", "Deleted"]
