"""The pod of a slot: the agent's container, with what the spec hands on."""

import copy
from collections.abc import Sequence
from typing import Any

from trireme.metrics import SCRAPE_ANNOTATIONS
from trireme.protocol.base import METRICS_PORT
from trireme.resources import job_kind_named
from trireme.resources.common import FILES_PATH, TrainingJobSpec
from trireme.resources.status import Resolved
from trireme_operator.build import parts
from trireme_operator.build.names import AGENT_PORT, CONTAINER, LABEL_SLOT, TOKEN_ENV, Names
from trireme_operator.decide.capacity import pod_resources

HOSTNAME_LABEL = "kubernetes.io/hostname"


def pod(
    names: Names, spec: TrainingJobSpec, resolved: Resolved, slot: int, key: bytes, excluded_nodes: Sequence[str] = ()
) -> dict[str, Any]:
    """Manifest of a slot's pod. It carries no attempt: a pod lives through attempts.

    Its agent asks for the token under `key`.
    """
    workers = spec.workers
    metadata = names.metadata(names.pod(slot), annotations={**SCRAPE_ANNOTATIONS, **workers.annotations})
    metadata["labels"] = {**workers.labels, **names.labels(), LABEL_SLOT: str(slot)}
    drain = spec.fault_tolerance.timeouts.drain_seconds
    grace = workers.termination_grace_period_seconds
    pod_spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "hostname": names.pod(slot),
        "subdomain": names.service,
        "terminationGracePeriodSeconds": drain + 30 if grace is None else grace,
        "securityContext": parts.pod_security(workers.security_context),
        "affinity": _affinity(names, workers.affinity, excluded_nodes),
        "containers": [_container(names, spec, resolved, slot, key)],
        "volumes": _volumes(names, spec),
    }
    pod_spec |= parts.placement(workers)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec}


def _container(names: Names, spec: TrainingJobSpec, resolved: Resolved, slot: int, key: bytes) -> dict[str, Any]:
    workers = spec.workers
    resources = pod_resources(spec)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": resolved.image,
        "command": ["python", "-m", "trireme_trainer.agent"],
        "env": _env(names, spec, slot, key),
        "envFrom": parts.env_from(workers, spec.checkpoint),
        "ports": [
            {"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": resources.to_manifest(),
        "securityContext": parts.container_security(workers.container_security_context),
        "volumeMounts": [
            {"name": "trireme-config", "mountPath": "/etc/trireme", "readOnly": True},
            *parts.writable_mounts(workers),
            *parts.shared_memory_mounts(workers),
            *parts.store_mounts(spec.checkpoint),
            *([{"name": "trireme-files", "mountPath": FILES_PATH, "readOnly": True}] if _files(names, spec) else []),
            *parts.manifests(workers.volume_mounts),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if workers.image_pull_policy:
        container["imagePullPolicy"] = workers.image_pull_policy
    return container


def _env(names: Names, spec: TrainingJobSpec, slot: int, key: bytes) -> list[dict[str, Any]]:
    env: list[dict[str, Any]] = [
        {"name": "TRIREME_JOB_FILE", "value": "/etc/trireme/job.json"},
        {"name": "TRIREME_SLOT", "value": str(slot)},
        {
            "name": TOKEN_ENV,
            "valueFrom": {"secretKeyRef": {"name": names.secret(key), "key": "token"}},
        },
        {"name": "TRIREME_AGENT_PORT", "value": str(AGENT_PORT)},
        {"name": "TRIREME_SCRATCH", "value": parts.SCRATCH_PATH},
        *parts.writable_env(spec.workers),
        parts.field_env("POD_IP", "status.podIP"),
        parts.field_env("POD_NAME", "metadata.name"),
        parts.field_env("POD_NAMESPACE", "metadata.namespace"),
        parts.field_env("NODE_NAME", "spec.nodeName"),
    ]
    if _files(names, spec):
        env.append({"name": "TRIREME_FILES_DIR", "value": FILES_PATH})
    return [*env, *parts.store_env(spec.checkpoint), *parts.manifests(spec.workers.env)]


def _volumes(names: Names, spec: TrainingJobSpec) -> list[dict[str, Any]]:
    workers = spec.workers
    volumes: list[dict[str, Any]] = [
        {"name": "trireme-config", "configMap": {"name": names.config_map}},
        *parts.writable_volumes(workers),
    ]
    if files := _files(names, spec):
        volumes.append({"name": "trireme-files", "projected": {"sources": files}})
    store = parts.store_volumes(spec.checkpoint)
    return [*volumes, *parts.shared_memory_volumes(workers), *store, *parts.manifests(workers.volumes)]


def _files(names: Names, spec: TrainingJobSpec) -> list[dict[str, Any]]:
    """Sources of a projected volume with the files that the job's kind asks for."""
    return [
        {"configMap": {"name": file.config_map, "items": [{"key": file.key, "path": file.name}]}}
        for file in job_kind_named(names.kind).config_map_files(spec)
    ]


def _affinity(names: Names, given: dict[str, Any] | None, excluded_nodes: Sequence[str]) -> dict[str, Any]:
    """The spec's affinity, with every slot on a node of its own and excluded nodes left out."""
    affinity = copy.deepcopy(given or {})
    spread = {"labelSelector": {"matchLabels": names.selector()}, "topologyKey": HOSTNAME_LABEL}
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    affinity.setdefault("podAntiAffinity", {}).setdefault(required, []).append(spread)
    if excluded_nodes:
        # One value per requirement: that is all the API allows on this field.
        keep_off = [{"key": "metadata.name", "operator": "NotIn", "values": [n]} for n in sorted(excluded_nodes)]
        node = affinity.setdefault("nodeAffinity", {}).setdefault(required, {})
        terms = node.setdefault("nodeSelectorTerms", [])
        if not terms:
            terms.append({})
        for term in terms:  # terms are alternatives: each of them must keep off
            term.setdefault("matchFields", []).extend(keep_off)
    return affinity
