"""The objects of a service: valid, restricted, owned, and telling the pods what the spec says."""

from typing import Any

import kubernetes_validate
import pytest

from trireme.protocol.serving import AdapterList, AdapterSource, ServingConfig
from trireme.resources import INFERENCE_SERVICE, InferenceSpec
from trireme.resources.inference_status import ServedModelStatus, ServiceStatus, TargetStatus
from trireme_local.node.environment import expand
from trireme_operator.decide.model import to_time
from trireme_operator.services import build, names
from trireme_operator.services.model import ServiceView

Json = dict[str, Any]
UID = "0f0f0f0f-1111-2222-3333-444444444444"
SERVICE = ServiceView("InferenceService", "prod", "llama", UID, "7", 1, False, {}, ServiceStatus())
TARGET = TargetStatus(
    revision="abc1234567",
    inputs_digest="sha256:0",
    image="serving:1",
    model=ServedModelStatus(uri="s3://m/llama", digest="sha256:1"),
    since=to_time(0),
)


def spec(**changes: Any) -> InferenceSpec:
    given = {
        "model": {"job": {"name": "llama"}},
        "task": "chat",
        "replicas": 3,
        "pods": {"accelerator": {"kind": "h100-sxm"}, "devices": 2},
        "store": {"credentials": {"secretRef": {"name": "s3"}}, "caBundle": {"configMapRef": {"name": "ca"}}},
        **changes,
    }
    found: InferenceSpec = INFERENCE_SERVICE.parse(given)
    return found


def container(given: InferenceSpec) -> Json:
    found: Json = build.deployment(SERVICE, given, TARGET)["spec"]["template"]["spec"]["containers"][0]
    return found


def config(given: InferenceSpec) -> ServingConfig:
    """As the program reads it, after a kubelet has expanded its variables."""
    env = {e["name"]: e.get("value", "") for e in container(given)["env"]}
    return ServingConfig.model_validate_json(expand(env["TRIREME_SERVICE"], {"HOME": "/root"}))


@pytest.mark.parametrize(
    "manifest",
    [
        build.deployment(SERVICE, spec(), TARGET),
        build.deployment(SERVICE, spec(cache={"hostPath": "/var/models"}, extraArgs=["--seed=1"]), TARGET),
        build.endpoint(SERVICE, "abc1234567", 8000),
        build.adapters(SERVICE, (AdapterSource(name="fr", id="1", uri="s3://m/fr"),)),
        build.budget(SERVICE, "abc1234567"),
        build.pod(SERVICE, spec(), TARGET),
    ],
    ids=lambda m: m["kind"],
)
def test_manifests_are_what_kubernetes_takes(manifest: Json) -> None:
    kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)


def test_every_stored_object_goes_with_the_service() -> None:
    for manifest in (
        build.deployment(SERVICE, spec(), TARGET),
        build.endpoint(SERVICE, "r", 8000),
        build.adapters(SERVICE, ()),
        build.budget(SERVICE, "r"),
    ):
        [owner] = manifest["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == ("InferenceService", UID, True)


def test_the_service_leads_to_the_pods_of_one_revision() -> None:
    template = build.deployment(SERVICE, spec(), TARGET)["spec"]["template"]
    selector = build.endpoint(SERVICE, TARGET.revision, 8000)["spec"]["selector"]
    assert selector.items() <= template["metadata"]["labels"].items()
    assert names.LABEL_REVISION in selector


def test_the_budget_counts_the_pods_that_the_service_leads_to_and_lets_unhealthy_ones_go() -> None:
    selector = build.endpoint(SERVICE, TARGET.revision, 8000)["spec"]["selector"]
    spec = build.budget(SERVICE, TARGET.revision)["spec"]
    assert spec["selector"] == {"matchLabels": selector}
    assert (spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]) == (1, "AlwaysAllow")


def test_pods_meet_the_restricted_standard_and_ask_for_their_devices() -> None:
    pod = build.deployment(SERVICE, spec(), TARGET)["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    [only] = pod["containers"]
    assert only["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert only["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert {m["mountPath"] for m in only["volumeMounts"]} > {"/dev/shm", "/etc/trireme-ca", "/etc/trireme-credentials"}


def test_a_pod_has_time_to_drain_and_probes_that_wait_for_a_slow_start() -> None:
    given = spec(drainSeconds=300, startupDeadlineSeconds=3600)
    pod = build.deployment(SERVICE, given, TARGET)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 300 + build.LEAVE_SECONDS
    startup = pod["containers"][0]["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > 3600


def test_the_program_is_told_what_the_spec_says_whatever_characters_are_in_it() -> None:
    template = "{{ '$(HOME)' }} costs $$5 \"quoted\""
    told = config(spec(chatTemplate=template, extraArgs=["--seed=1"]))
    assert told.chat_template == template
    assert (told.model.uri, told.model.digest) == ("s3://m/llama", "sha256:1")
    assert (told.served_name, told.devices, told.kv_cache_bytes, told.adapter_room) == ("llama", 2, None, None)
    assert told.extra_arguments == ["--seed=1"]


def test_on_processors_the_cache_is_bounded_when_nobody_says_otherwise() -> None:
    cpu = {"accelerator": {"kind": "cpu"}}
    assert config(spec(pods=cpu)).kv_cache_bytes == 512 << 20
    assert config(spec(pods=cpu, kvCache="64Mi")).kv_cache_bytes == 64 << 20
    assert container(spec(pods=cpu))["resources"] == {"requests": {}, "limits": {}}


def test_room_for_adapters_is_made_for_those_that_are_named_or_announced() -> None:
    named = config(spec(adapters=[{"name": "fr", "uri": "s3://m/fr"}])).adapter_room
    assert named is not None
    assert (named.count, named.rank) == (8, 64)
    announced = config(spec(adapterLimits={"count": 2, "rank": 16})).adapter_room
    assert announced is not None
    assert (announced.count, announced.rank) == (2, 16)


def test_the_list_of_adapters_is_what_the_program_reads() -> None:
    wanted = (AdapterSource(name="fr", id="1", uri="s3://m/fr", digest="sha256:2", base="meta/llama"),)
    content = build.adapters(SERVICE, wanted)["data"]["adapters.json"]
    assert AdapterList.model_validate_json(content).adapters == list(wanted)


def test_a_model_of_a_uri_is_not_pinned_to_what_one_replica_found_there() -> None:
    assert config(spec(model={"uri": "s3://m/llama"})).model.digest is None
