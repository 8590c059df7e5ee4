"""The arithmetic of rollouts: never too many pods, never too few, and always an end."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_local.controllers import deploymentstatus as conditions
from trireme_local.controllers import rollout
from trireme_local.controllers.expectations import Expectations
from trireme_local.controllers.podranking import pods_to_delete
from trireme_local.controllers.replicasets import replica_status, slow_start

Json = dict[str, Any]
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds_ago: float) -> str:
    return (NOW - timedelta(seconds=seconds_ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


def deployment(replicas: int, surge: int | str = "25%", unavailable: int | str = "25%", **spec: Any) -> Json:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "c", "image": "two"}]}}
    return {
        "metadata": {"name": "d", "namespace": "n", "uid": "du", "generation": 1, "annotations": {}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "d"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling},
            "template": template,
            "progressDeadlineSeconds": 60,
            **spec,
        },
        "status": {},
    }


def replica_set(name: str, replicas: int, available: int | None = None, age: float = 0, **annotations: str) -> Json:
    image = "two" if name == "new" else name
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "creationTimestamp": at(age),
            "generation": 1,
            "annotations": {f"deployment.kubernetes.io/{key.replace('_', '-')}": v for key, v in annotations.items()},
        },
        "spec": {
            "replicas": replicas,
            "template": {
                "metadata": {"labels": {"app": "d", "pod-template-hash": name}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
        "status": {
            "replicas": replicas,
            "availableReplicas": replicas if available is None else available,
            "readyReplicas": replicas if available is None else available,
            "observedGeneration": 1,
        },
    }


@pytest.mark.parametrize(
    ("replicas", "surge", "unavailable", "expected"),
    [
        (10, "25%", "25%", (3, 2)),
        (1, "25%", "25%", (1, 0)),
        (10, 0, "5%", (0, 1)),
        (4, 2, 9, (2, 4)),
        (0, "25%", "25%", (0, 0)),
    ],
)
def test_surge_rounds_up_and_unavailable_down(
    replicas: int, surge: int | str, unavailable: int | str, expected: tuple[int, int]
) -> None:
    assert rollout.surge_and_unavailable(deployment(replicas, surge, unavailable)) == expected


@given(
    replicas=st.integers(0, 12),
    surge=st.integers(0, 12),
    unavailable=st.integers(0, 12),
    start=st.lists(st.integers(0, 12), min_size=1, max_size=3),
    broken=st.booleans(),
)
def test_a_rolling_update_keeps_its_bounds_and_ends(
    replicas: int, surge: int, unavailable: int, start: list[int], broken: bool
) -> None:
    """Pods become available as soon as they are there; those of the first old ReplicaSet never when `broken`."""
    subject = deployment(replicas, surge, unavailable)
    surge, unavailable = rollout.surge_and_unavailable(subject)
    old = [replica_set(f"old-{index}", size, age=10 - index) for index, size in enumerate(start)]
    new = replica_set("new", 0)

    def settle(item: Json) -> None:
        size = item["spec"]["replicas"]
        good = 0 if broken and item["metadata"]["name"] == "old-0" else size
        item["status"] |= {"replicas": size, "availableReplicas": good}

    for item in old:
        settle(item)
    total = sum(start)
    for _ in range(100):
        before = [item["spec"]["replicas"] for item in [*old, new]]
        available = sum(item["status"]["availableReplicas"] for item in [*old, new])
        wanted = rollout.new_replicas(subject, [*old, new], new)
        grown = wanted != new["spec"]["replicas"]
        new["spec"]["replicas"] = wanted
        if not grown:
            for item, size in rollout.old_scale_down(subject, old, new):
                assert 0 <= size < item["spec"]["replicas"]
                # What goes first is what is not available.
                item["status"]["availableReplicas"] = min(item["status"]["availableReplicas"], size)
                item["spec"]["replicas"] = size
        now_available = sum(item["status"]["availableReplicas"] for item in [*old, new])
        assert now_available >= min(available, replicas - unavailable)
        assert sum(item["spec"]["replicas"] for item in [*old, new]) <= max(total, replicas + surge)
        for item in [*old, new]:
            settle(item)
        if [item["spec"]["replicas"] for item in [*old, new]] == before:
            break
    assert new["spec"]["replicas"] == replicas
    assert all(item["spec"]["replicas"] == 0 for item in old)


@given(
    sizes=st.lists(st.integers(0, 30), min_size=2, max_size=4),
    before=st.integers(1, 60),
    after=st.integers(0, 60),
)
def test_a_resize_in_the_middle_of_a_rollout_adds_up(sizes: list[int], before: int, after: int) -> None:
    items = [replica_set(f"r{i}", size, max_replicas=str(before)) for i, size in enumerate(sizes)]
    subject = deployment(after)
    surge, _ = rollout.surge_and_unavailable(subject)
    resized = rollout.proportional_sizes(subject, items)
    assert all(size >= 0 for _, size in resized)
    wanted = after + surge if after else 0
    if resized:
        assert sum(size for _, size in resized) == wanted or any(size == 0 for _, size in resized)


def test_the_template_decides_which_replica_set_is_the_new_one() -> None:
    subject = deployment(2)
    old, new, twin = replica_set("old", 1, age=9), replica_set("new", 1, age=5), replica_set("new", 1, age=1)
    found, others = rollout.new_and_old(subject, [twin, new, old])
    assert found is new, "the oldest of those with the same template"
    assert others == [old, twin]
    assert rollout.new_and_old(subject, [old]) == (None, [old])


def test_a_new_replica_set_is_named_labelled_and_numbered() -> None:
    subject = deployment(4)
    subject["metadata"]["annotations"] = {"note": "kept", "deployment.kubernetes.io/revision": "7"}
    made = rollout.new_replica_set(subject, "abc", [replica_set("old", 4, revision="7")])
    assert made["metadata"]["name"] == "d-abc"
    assert made["spec"]["selector"]["matchLabels"] == {"app": "d", "pod-template-hash": "abc"}
    assert made["spec"]["template"]["metadata"]["labels"]["pod-template-hash"] == "abc"
    assert made["spec"]["replicas"] == 1, "what the surge leaves room for"
    assert made["metadata"]["annotations"] == {
        "note": "kept",
        "deployment.kubernetes.io/revision": "8",
        "deployment.kubernetes.io/desired-replicas": "4",
        "deployment.kubernetes.io/max-replicas": "5",
    }
    hashes = {rollout.template_hash(subject["spec"]["template"], count) for count in range(3)}
    assert len(hashes) == 3
    assert all(set(item) <= set("bcdfghjklmnpqrstvwxz2456789") for item in hashes)


def test_a_replica_set_that_is_rolled_back_to_becomes_the_newest_revision() -> None:
    back, current = replica_set("new", 0, revision="1"), replica_set("old", 2, revision="2")
    found = rollout.revision_annotations(deployment(2), back, [current])
    assert found["deployment.kubernetes.io/revision"] == "3"
    assert found["deployment.kubernetes.io/revision-history"] == "1"
    assert rollout.revision_annotations(deployment(2), current, [back]) == current["metadata"]["annotations"]


def test_clean_up_takes_the_oldest_revisions_and_never_one_with_pods() -> None:
    items = [replica_set(f"r{number}", 0, revision=str(number)) for number in (10, 9, 3)]
    busy = replica_set("busy", 1, revision="1")
    chosen = rollout.to_clean_up(deployment(1, revisionHistoryLimit=2), [*items, busy])
    assert [item["metadata"]["name"] for item in chosen] == ["r3"]
    assert rollout.to_clean_up(deployment(1), items) == []


def test_progress_completion_and_its_lack_are_told_by_conditions() -> None:
    subject, new = deployment(2), replica_set("new", 2, 1)
    first = conditions.rollout_status(subject, [new], new, NOW)
    kinds = {item["type"]: (item["status"], item["reason"]) for item in first["conditions"]}
    assert kinds == {
        "Available": ("False", "MinimumReplicasUnavailable"),
        "Progressing": ("True", "ReplicaSetUpdated"),
    }
    subject["status"] = first
    progressing = next(item for item in first["conditions"] if item["type"] == "Progressing")
    began = datetime.fromisoformat(progressing["lastUpdateTime"].replace("Z", "+00:00"))
    for late, status in ((59, "True"), (61, "False")):
        later = conditions.rollout_status(subject, [new], new, began + timedelta(seconds=late))
        assert conditions.condition(later["conditions"], "Progressing")["status"] == status
    subject["status"] = later
    done = replica_set("new", 2)
    complete = conditions.rollout_status(subject, [done], done, began + timedelta(seconds=70))
    assert conditions.condition(complete["conditions"], "Progressing")["reason"] == "NewReplicaSetAvailable"
    subject["status"] = complete
    dead = replica_set("new", 2, 0)
    again = conditions.rollout_status(subject, [dead], dead, began + timedelta(days=9))
    assert conditions.condition(again["conditions"], "Progressing")["reason"] == "NewReplicaSetAvailable"
    assert conditions.condition(again["conditions"], "Available")["status"] == "False"
    # Without a deadline nothing is said of progress.
    endless = deployment(2, progressDeadlineSeconds=2**31 - 1)
    assert [item["type"] for item in conditions.rollout_status(endless, [new], new)["conditions"]] == ["Available"]


def pod(name: str, *, node: str = "a", phase: str = "Running", ready: float | None = 100.0, **more: Any) -> Json:
    status: Json = {"phase": phase, "containerStatuses": [{"restartCount": more.get("restarts", 0)}]}
    if ready is not None:
        status["conditions"] = [{"type": "Ready", "status": "True", "lastTransitionTime": at(ready)}]
    annotations = {"controller.kubernetes.io/pod-deletion-cost": more["cost"]} if "cost" in more else {}
    metadata = {"name": name, "uid": name, "creationTimestamp": at(more.get("age", 200.0)), "annotations": annotations}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": status}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (pod("unbound", node="", phase="Pending", ready=None), pod("pending", phase="Pending", ready=None)),
        (pod("pending", phase="Pending", ready=None), pod("running", ready=None)),
        (pod("unready", ready=None), pod("ready", cost="-5")),
        (pod("cheap", cost="-1"), pod("normal")),
        (pod("crowded", node="b"), pod("lonely", cost="0", ready=5)),
        (pod("fresh", ready=5), pod("proven", ready=5000)),
        (pod("restless", restarts=3), pod("steady")),
        (pod("young", age=110), pod("old", age=99999)),
    ],
)
def test_pods_are_deleted_in_the_order_of_their_worth(first: Json, second: Json) -> None:
    related = [first, second, pod("c", node="b"), pod("d", node="b")]
    for order in ([first, second], [second, first]):
        assert pods_to_delete(order, 1, related, NOW) == [first]


def test_pods_count_as_available_after_their_time() -> None:
    subject = replica_set("new", 3)
    subject["spec"]["minReadySeconds"] = 50
    status = replica_status(subject, [pod("a", ready=100), pod("b", ready=10), pod("c", ready=None)], None, NOW)
    assert (status["replicas"], status["readyReplicas"], status["availableReplicas"]) == (3, 2, 1)
    failed = replica_status(subject, [], ("FailedCreate", "no"), NOW)
    assert [item["reason"] for item in failed["conditions"]] == ["FailedCreate"]
    assert "conditions" not in replica_status({**subject, "status": failed}, [], None, NOW)


def test_nothing_is_created_twice_while_the_view_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    expectations = Expectations()
    expectations.expect("u", creations=2)
    expectations.created("u")
    assert not expectations.satisfied("u")
    expectations.created("u")
    assert expectations.satisfied("u")
    expectations.expect("u", deletions=["p"])
    expectations.deleted("u", "other")
    assert not expectations.satisfied("u")
    monkeypatch.setattr("trireme_local.controllers.expectations.TIMEOUT_SECONDS", -1)
    assert expectations.satisfied("u"), "an event that was missed does not stop the controller for ever"


async def test_a_refused_creation_is_not_repeated_for_every_pod() -> None:
    tried = []

    async def refuse() -> Exception | None:
        tried.append(1)
        return ValueError("no") if len(tried) > 2 else None

    count, error = await slow_start(100, refuse)
    assert (count, len(tried)) == (3, 3)
    assert isinstance(error, ValueError)
