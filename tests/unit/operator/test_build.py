"""The objects of a job."""

import base64
import json
from typing import Any

from gang_machine import SPEC

from trireme.metrics import SCRAPE_ANNOTATIONS
from trireme.protocol import JobConfig
from trireme.resources import job_kind_named
from trireme.resources.common import FILES_PATH, MAX_JOB_NAME_LENGTH, RESERVED_MOUNT_PATHS
from trireme.resources.status import Resolved
from trireme_operator import build
from trireme_operator.decide.model import to_time

NAMES = build.Names(kind="PretrainJob", namespace="team", job="stdlib", uid="0123456789abcdef")
KIND = job_kind_named("PretrainJob")
KEY = b"k" * 32


def pod(slot: int = 0, excluded: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
    parsed, resolved = resolve(**spec)
    return build.pod(NAMES, parsed, resolved, slot, KEY, excluded)


def resolve(**spec: Any) -> tuple[Any, Resolved]:
    parsed = KIND.parse({**SPEC, **spec})
    resolved = Resolved(
        spec=parsed.to_manifest(),
        plan={"tensor": 1},
        image="img",
        protocol="1.0",
        slots=2,
        ranks_per_slot=1,
        program="pretrain",
        at=to_time(0),
    )
    return parsed, resolved


def workers(**more: Any) -> dict[str, Any]:
    return {"workers": {**SPEC["workers"], **more}}


def test_names_carry_no_attempt_and_everything_is_owned_by_the_job() -> None:
    manifest = pod(1)
    assert manifest["metadata"]["name"] == "stdlib-1"
    parsed, resolved = resolve()
    secret = build.agent_secret(NAMES, KEY)
    for made in (manifest, build.service(NAMES), build.config_map(NAMES, parsed, resolved), secret):
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["kind"]) == (NAMES.uid, True, "PretrainJob")
        assert made["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "trireme-operator"


def test_pods_meet_the_restricted_security_standard() -> None:
    spec = pod()["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never"


def test_each_slot_has_a_node_of_its_own_and_keeps_off_excluded_ones() -> None:
    term = {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term, {}]}}
    given = workers(affinity={"nodeAffinity": required})
    affinity = pod(0, ("bad", "worse"), **given)["spec"]["affinity"]
    (spread,) = affinity["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"] == {"matchLabels": {"trireme.dev/job-uid": NAMES.uid}}
    terms = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert len(terms) == 2
    for found in terms:
        assert [f["values"] for f in found["matchFields"]] == [["bad"], ["worse"]]
    assert terms[0]["matchExpressions"] == term["matchExpressions"]


def test_the_spec_passes_through() -> None:
    given = workers(
        tolerations=[{"key": "gpu", "operator": "Exists"}],
        nodeSelector={"zone": "x"},
        volumes=[{"name": "data", "hostPath": {"path": "/data"}}],
        volumeMounts=[{"name": "data", "mountPath": "/data", "readOnly": True}],
        env=[{"name": "HF_HOME", "value": "/data/hf"}],
        envFrom=[{"configMapRef": {"name": "more"}}],
        imagePullSecrets=[{"name": "registry"}],
        serviceAccountName="trainer",
        priorityClassName="high",
        schedulerName="volcano",
        labels={"kueue.x-k8s.io/queue-name": "q"},
        annotations={"note": "x"},
        sharedMemory="1Gi",
    )
    made = pod(0, **given)
    spec = made["spec"]
    (container,) = spec["containers"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "q"
    assert made["metadata"]["annotations"] == {**SCRAPE_ANNOTATIONS, "note": "x"}
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert (spec["serviceAccountName"], spec["priorityClassName"], spec["schedulerName"]) == (
        "trainer",
        "high",
        "volcano",
    )
    assert {"name": "data", "hostPath": {"path": "/data"}} in spec["volumes"]
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in container["volumeMounts"]
    assert {"name": "trireme-shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}} in spec["volumes"]
    assert {"name": "HF_HOME", "value": "/data/hf"} in container["env"]
    assert {"configMapRef": {"name": "more"}} in container["envFrom"]


def test_labels_of_the_spec_cannot_replace_ours() -> None:
    made = pod(0, **workers(labels={"trireme.dev/job-uid": "other"}))
    assert made["metadata"]["labels"]["trireme.dev/job-uid"] == NAMES.uid


def test_grace_leaves_time_to_drain() -> None:
    drain = SPEC["faultTolerance"]["timeouts"]["drainSeconds"]
    assert pod()["spec"]["terminationGracePeriodSeconds"] == drain + 30


def test_store_credentials_and_ca_come_as_environment() -> None:
    checkpoint = {
        **SPEC["checkpoint"],
        "credentials": {"secretRef": {"name": "s3"}},
        "caBundle": {"configMapRef": {"name": "ca", "key": "root.pem"}},
    }
    spec = pod(checkpoint=checkpoint)["spec"]
    (container,) = spec["containers"]
    assert {"secretRef": {"name": "s3"}} in container["envFrom"]
    assert {"name": "AWS_CA_BUNDLE", "value": "/etc/trireme-ca/root.pem"} in container["env"]


def test_store_credentials_are_mounted_too_so_that_later_changes_arrive() -> None:
    given = {**SPEC["checkpoint"], "credentials": {"secretRef": {"name": "s3"}}}
    spec = pod(checkpoint=given)["spec"]
    (container,) = spec["containers"]
    # Optional, so that the kubelet tells of a missing Secret in the container's state and not only in an event.
    assert {"name": "trireme-credentials", "secret": {"secretName": "s3", "optional": True}} in spec["volumes"]
    (mounted,) = [m for m in container["volumeMounts"] if m["name"] == "trireme-credentials"]
    assert mounted["mountPath"] in RESERVED_MOUNT_PATHS
    assert {"name": "TRIREME_CREDENTIALS_DIR", "value": mounted["mountPath"]} in container["env"]
    assert "trireme-credentials" not in json.dumps(pod(checkpoint={**given, "credentials": {"workloadIdentity": True}}))


def test_the_config_map_is_what_an_agent_reads() -> None:
    parsed, resolved = resolve()
    made = build.config_map(NAMES, parsed, resolved)
    config = JobConfig.model_validate_json(made["data"]["job.json"])
    assert (config.slots, config.world_size, config.job.name, config.store.uri) == (2, 2, "stdlib", "s3://bucket/x")
    assert config.spec == resolved.spec
    assert made["immutable"] is True


def test_the_secret_holds_a_token_that_only_the_key_makes() -> None:
    token = base64.b64decode(build.agent_secret(NAMES, b"a" * 32)["data"]["token"]).decode()
    assert token == build.agent_token(b"a" * 32, NAMES.uid)
    assert token != build.agent_token(b"b" * 32, NAMES.uid)
    assert token != build.agent_token(b"a" * 32, "other")
    assert "aaaa" not in json.dumps(build.agent_secret(NAMES, b"a" * 32))


def test_each_key_has_a_secret_of_its_own_that_the_pods_made_under_it_refer_to() -> None:
    assert NAMES.secret(KEY) != NAMES.secret(b"other" * 8)
    (container,) = pod()["spec"]["containers"]
    (token,) = [e for e in container["env"] if e["name"] == "TRIREME_AGENT_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"]["name"] == build.agent_secret(NAMES, KEY)["metadata"]["name"]
    longest = build.Names("PretrainJob", "team", "j" * MAX_JOB_NAME_LENGTH, NAMES.uid)
    assert len(longest.secret(KEY)) <= 63


def test_a_capability_can_be_added_without_losing_the_rest_of_the_standard() -> None:
    given = workers(containerSecurityContext={"capabilities": {"add": ["IPC_LOCK"]}})
    (container,) = pod(0, **given)["spec"]["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
        "readOnlyRootFilesystem": True,
    }


def test_a_read_only_root_leaves_places_to_write() -> None:
    def places(**more: Any) -> tuple[dict[str, str], list[str]]:
        spec = pod(0, **workers(**more))["spec"]
        (container,) = spec["containers"]
        empty = {v["name"] for v in spec["volumes"] if "emptyDir" in v}
        mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
        home = [e["value"] for e in container["env"] if e["name"] == "HOME"]
        return {path: name for path, name in mounts.items() if name in empty}, home

    written, home = places()
    assert set(written) == {"/scratch", "/tmp"}
    assert home == ["/scratch"]
    _, home = places(env=[{"name": "HOME", "value": "/mine"}])
    assert home == ["/mine"]
    own = {"volumes": [{"name": "mine", "emptyDir": {}}], "volumeMounts": [{"name": "mine", "mountPath": "/tmp"}]}
    assert places(**own)[0]["/tmp"] == "mine"


def test_devices_that_talk_through_shared_memory_have_some() -> None:
    def size(**more: Any) -> str | None:
        spec = pod(0, **workers(**more))["spec"]
        mounts = [m["mountPath"] for m in spec["containers"][0]["volumeMounts"]]
        found = [v["emptyDir"]["sizeLimit"] for v in spec["volumes"] if v["name"] == "trireme-shm"]
        assert ("/dev/shm" in mounts) == bool(found)
        return found[0] if found else None

    gpu = {"accelerator": {"kind": "h100-sxm"}}
    assert size() is None
    assert size(**gpu) == "8Gi"
    assert size(**gpu, resources={"limits": {"memory": "64Gi"}}) == str(32 * 1024**3)
    assert size(**gpu, sharedMemory="1Gi") == "1Gi"


def test_files_that_a_kind_asks_for_are_one_projected_volume() -> None:
    info = job_kind_named("RLHFJob")
    functions = [{"name": n, "function": {"configMap": {"name": f"of-{n}", "key": "r.py"}}} for n in ("exact", "terse")]
    raw = {
        "algorithm": "ppo",
        "policy": {"uri": "s3://models/a"},
        "data": {"sources": [{"uri": "s3://corpus/x"}]},
        "rewards": [*functions, {"name": "python", "pythonSyntax": {}}],
        "workers": SPEC["workers"],
        "checkpoint": SPEC["checkpoint"],
    }
    _, resolved = resolve()
    names = build.Names(kind="RLHFJob", namespace="team", job="aligned", uid="0123456789abcdef")
    made = build.pod(names, info.parse(raw), resolved, 0, KEY)["spec"]
    (volume,) = [v for v in made["volumes"] if v["name"] == "trireme-files"]
    assert volume["projected"]["sources"] == [
        {"configMap": {"name": f"of-{n}", "items": [{"key": "r.py", "path": f"{n}.py"}]}} for n in ("exact", "terse")
    ]
    (mount,) = [m for m in made["containers"][0]["volumeMounts"] if m["name"] == "trireme-files"]
    assert (mount["mountPath"], mount["readOnly"]) == (FILES_PATH, True)
    assert FILES_PATH in RESERVED_MOUNT_PATHS
    assert {"name": "TRIREME_FILES_DIR", "value": FILES_PATH} in made["containers"][0]["env"]
    assert not any(v["name"] == "trireme-files" for v in pod()["spec"]["volumes"])
