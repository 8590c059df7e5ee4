"""A cluster with one job of each state that matters and a service, and a store, for tests of what shows them."""

from datetime import UTC, datetime, timedelta
from typing import Any

from trireme.checkpoints import JobKeys
from trireme.checkpoints.history import StepRecord
from trireme.resources import GROUP, VERSION
from trireme_cli.cluster import ClusterError

Json = dict[str, Any]
NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
SECRET = "open-sesame"
STEPS_OF_A_SEGMENT = 4


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def condition(kind: str, status: str, reason: str, message: str = "") -> Json:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": ago(10)}


def resource(kind: str, name: str, spec: Json, namespace: str = "default", **status: Any) -> Json:
    metadata = {"name": name, "namespace": namespace, "uid": f"uid-{name}", "creationTimestamp": ago(1000)}
    return {"kind": kind, "metadata": metadata, "spec": spec, "status": status}


def running_job(name: str = "llama", namespace: str = "default") -> Json:
    spec = {"checkpoint": {"uri": "s3://bucket/p", "credentials": {"secretRef": {"name": "s3"}}}}
    resolved = {"spec": spec, "plan": {}, "image": "i", "protocol": "1", "slots": 2, "ranksPerSlot": 4, "at": ago(990)}
    restart = {"attempt": 1, "cause": "NodeLost", "node": "node-2", "step": 6, "resumeStep": 4, "raisedAt": ago(300)}
    return resource(
        "PretrainJob",
        name,
        spec,
        namespace,
        state="Running",
        conditions=[condition("Running", "True", "Training", "attempt 2 trains")],
        resolved={**resolved, "program": "pretrain"},
        gang={"attempt": 2, "phase": "Running", "slots": [{"index": 0, "pod": f"{name}-0", "node": "node-1"}]},
        progress={
            "step": 9,
            "totalSteps": 100,
            "loss": 2.5,
            "tokensPerSecond": 15000.0,
            "mfu": 0.3,
            "learningRate": 0.001,
            "gradNorm": 1.5,
            "updatedAt": ago(1),
        },
        checkpoint={"step": 8, "committedAt": ago(75), "committedCount": 2, "bytes": 2048},
        restarts={"total": 1, "history": [restart]},
        time={"seconds": {"productive": 700.0, "down": 200.0}, "open": {"category": "productive", "since": ago(100)}},
    )


def refused_job() -> Json:
    refusal = condition("Accepted", "False", "DoesNotFit", "needs 90 GiB of 80 GiB [bold]per device[/]")
    return resource("FineTuneJob", "refused", {}, state="Rejected", conditions=[refusal])


def service() -> Json:
    adapters = [{"name": "french", "uri": "s3://bucket/fr", "digest": "sha256:1"}]
    pod = {"name": "chat-1", "revision": "r1", "ready": True, "state": "Ready", "restarts": 3, "adapters": adapters}
    return resource(
        "InferenceService",
        "chat",
        {"pods": {"devices": 2}},
        state="Ready",
        conditions=[condition("Ready", "True", "AllReady")],
        url="http://10.0.0.9:8000/v1",
        replicas=2,
        readyReplicas=1,
        servingRevision="r1",
        model={"uri": "s3://bucket/base", "digest": "sha256:2"},
        pods=[pod],
    )


class FakeCluster:
    """Answers lists of the kinds and counts them."""

    def __init__(self, *objects: Json) -> None:
        self.objects = list(objects)
        self.refused: dict[str, ClusterError] = {}
        self.asked: list[str] = []

    def request(self, method: str, path: str, query: dict[str, str]) -> Json:
        assert method == "GET"
        self.asked.append(path)
        *place, plural = path.removeprefix(f"/apis/{GROUP}/{VERSION}/").split("/")
        if plural in self.refused:
            raise self.refused[plural]
        found = [
            o
            for o in self.objects
            if f"{o['kind'].lower()}s" == plural and (not place or place[1] == o["metadata"]["namespace"])
        ]
        start = int(query.get("continue", "0"))
        page = found[start : start + int(query["limit"])]
        rest = {"continue": str(start + len(page))} if start + len(page) < len(found) else {}
        return {"items": page, "metadata": rest}


def records(attempt: int, steps: range, **changes: Any) -> list[StepRecord]:
    """Steps of 1000 tokens in 0.1 s each, with a loss that falls by 0.1 a step."""
    facts = {"learning_rate": 0.001, "grad_norm": 1.0, "seconds": 0.1, "completed_at": NOW} | changes
    return [
        StepRecord.model_validate({"step": n, "attempt": attempt, "loss": 5 - n / 10, "tokens": 1000 * n} | facts)
        for n in steps
    ]


class FakeStore:
    """The objects of one job; what is read is noted."""

    def __init__(self, keys: JobKeys, objects: dict[str, list[StepRecord]], *checkpoints: str) -> None:
        self.keys = keys
        self.objects = {key: "".join(r.to_json() + "\n" for r in found).encode() for key, found in objects.items()}
        self.objects |= dict.fromkeys(checkpoints, b"{}")
        self.read_keys: list[str] = []

    def list_keys(self, prefix: str) -> list[str]:
        return [key for key in self.objects if key.startswith(prefix)]

    def read(self, key: str) -> bytes:
        self.read_keys.append(key)
        return self.objects[key]
