"""What is read of pods, whoever made them."""

from typing import Any

import pytest

from trireme_operator.observe.cache import Cache
from trireme_operator.observe.usage import NodeUsage
from trireme_operator.observe.views import pod_view, requests_of

Json = dict[str, Any]


def container(**requests: str) -> Json:
    return {"resources": {"requests": requests}}


def pod(name: str = "p", **spec: Any) -> Json:
    return {"metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [
        ("100e-3", 100),
        ("5n", 1),
        ("250u", 1),
        ("1.", 1000),
        (".5", 500),
        ("+2", 2000),
        ("1E", 10**21),
        ("2e3", 2 * 10**6),
    ],
)
def test_every_legal_quantity_is_read(text: str, thousandths: int) -> None:
    assert requests_of(pod(containers=[container(cpu=text)])) == {"cpu": thousandths}


def test_an_unreadable_quantity_costs_only_itself() -> None:
    usage = NodeUsage()
    usage.pod_changed(None, pod("odd", containers=[container(cpu="1", memory="many")], nodeName="n"))
    usage.pod_changed(None, pod("even", containers=[container(cpu="1")], nodeName="n"))
    nodes = Cache()
    nodes.handle(None, {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "4", "odd": "?"}}})
    (view,) = usage.views(nodes)
    assert (view.free["cpu"], view.free["pods"]) == (2000, 108_000)


def test_init_containers_count_with_the_sidecars_before_them() -> None:
    sidecar = {**container(cpu="1"), "restartPolicy": "Always"}
    found = requests_of(pod(containers=[container(cpu="2")], initContainers=[container(cpu="4"), sidecar]))
    assert found == {"cpu": 4000}
    found = requests_of(pod(containers=[container(cpu="2")], initContainers=[sidecar, container(cpu="4")]))
    assert found == {"cpu": 5000}


def test_requests_of_the_pod_replace_those_of_its_containers() -> None:
    whole = {"requests": {"cpu": "3"}}
    found = requests_of(pod(containers=[container(cpu="1", memory="1k")], resources=whole, overhead={"cpu": "1"}))
    assert found == {"cpu": 4000, "memory": 1_000_000}


def status(**parts: Any) -> Json:
    metadata = {"name": "j-0", "uid": "u", "resourceVersion": "1", "labels": {"trireme.dev/slot": "0"}}
    return {"metadata": metadata, "status": {"phase": "Pending", **parts}}


def state(name: str, **kind: Any) -> Json:
    return {"name": name, "state": kind}


def test_a_sidecar_is_not_taken_for_the_trainer() -> None:
    sidecar = state("proxy", terminated={"exitCode": 0})
    trainer = state("trainer", terminated={"exitCode": 137, "reason": "OOMKilled"})
    view = pod_view(status(containerStatuses=[sidecar, trainer]))
    assert view is not None
    assert (view.exit_code, view.termination_reason) == (137, "OOMKilled")


def test_what_holds_up_an_init_container_is_why_the_pod_waits() -> None:
    init = state("fetch", waiting={"reason": "ImagePullBackOff", "message": "no such image"})
    trainer = state("trainer", waiting={"reason": "PodInitializing"})
    view = pod_view(status(initContainerStatuses=[init], containerStatuses=[trainer]))
    assert view is not None
    assert (view.waiting_reason, view.waiting_message) == ("ImagePullBackOff", "no such image")


def test_the_gates_that_hold_a_pod_are_read() -> None:
    raw = {**status(), "spec": {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}}
    view = pod_view(raw)
    assert view is not None
    assert view.gated == ("kueue.x-k8s.io/admission",)


def test_a_sidecars_trouble_is_not_the_running_trainers() -> None:
    sidecar = state("proxy", waiting={"reason": "CrashLoopBackOff"})
    view = pod_view(status(containerStatuses=[sidecar, state("trainer", running={})]))
    assert view is not None
    assert view.waiting_reason == ""
