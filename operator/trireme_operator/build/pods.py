"""The pod of a slot: the agent's container, with what the spec hands on."""

import copy
from collections.abc import Sequence
from typing import Any

from trireme.resources import kind_named
from trireme.resources.common import FILES_PATH, TrainingJobSpec
from trireme.resources.status import Resolved
from trireme_operator.build.names import AGENT_PORT, CONTAINER, LABEL_SLOT, METRICS_PORT, TOKEN_ENV, Names
from trireme_operator.decide.capacity import pod_resources

CA_PATH = "/etc/trireme-ca"
CREDENTIALS_PATH = "/etc/trireme-credentials"
HOSTNAME_LABEL = "kubernetes.io/hostname"
USER_ID = 1000
DEFAULT_SHARED_MEMORY = "8Gi"


def pod(
    names: Names, spec: TrainingJobSpec, resolved: Resolved, slot: int, key: bytes, excluded_nodes: Sequence[str] = ()
) -> dict[str, Any]:
    """Manifest of a slot's pod. It carries no attempt: a pod lives through attempts.

    Its agent asks for the token under `key`.
    """
    workers = spec.workers
    metadata = names.metadata(names.pod(slot), annotations=dict(workers.annotations))
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
        "securityContext": _pod_security(workers.security_context),
        "affinity": _affinity(names, workers.affinity, excluded_nodes),
        "containers": [_container(names, spec, resolved, slot, key)],
        "volumes": _volumes(names, spec),
    }
    optional = {
        "nodeSelector": dict(workers.node_selector),
        "tolerations": [dict(t) for t in workers.tolerations],
        "imagePullSecrets": [{"name": s.name} for s in workers.image_pull_secrets],
        "serviceAccountName": workers.service_account_name,
        "priorityClassName": workers.priority_class_name,
        "schedulerName": workers.scheduler_name,
    }
    pod_spec |= {name: value for name, value in optional.items() if value}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod_spec}


def _container(names: Names, spec: TrainingJobSpec, resolved: Resolved, slot: int, key: bytes) -> dict[str, Any]:
    workers = spec.workers
    resources = pod_resources(spec)
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": resolved.image,
        "command": ["python", "-m", "trireme_trainer.agent"],
        "env": _env(names, spec, slot, key),
        "envFrom": _env_from(spec),
        "ports": [
            {"name": "agent", "containerPort": AGENT_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": resources.to_manifest(),
        "securityContext": _container_security(workers.container_security_context),
        "volumeMounts": [
            {"name": "trireme-config", "mountPath": "/etc/trireme", "readOnly": True},
            {"name": "trireme-scratch", "mountPath": "/scratch"},
            *([{"name": "trireme-shm", "mountPath": "/dev/shm"}] if _shared_memory(spec) else []),
            *(
                [{"name": "trireme-ca", "mountPath": CA_PATH, "readOnly": True}]
                if spec.checkpoint.ca_bundle is not None
                else []
            ),
            *(
                [{"name": "trireme-credentials", "mountPath": CREDENTIALS_PATH, "readOnly": True}]
                if _credentials_secret(spec)
                else []
            ),
            *([{"name": "trireme-files", "mountPath": FILES_PATH, "readOnly": True}] if _files(names, spec) else []),
            *(mount.model_dump(mode="json", by_alias=True, exclude_none=True) for mount in workers.volume_mounts),
        ],
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if workers.image_pull_policy:
        container["imagePullPolicy"] = workers.image_pull_policy
    return container


def _env(names: Names, spec: TrainingJobSpec, slot: int, key: bytes) -> list[dict[str, Any]]:
    def field(name: str, path: str) -> dict[str, Any]:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    env: list[dict[str, Any]] = [
        {"name": "TRIREME_JOB_FILE", "value": "/etc/trireme/job.json"},
        {"name": "TRIREME_SLOT", "value": str(slot)},
        {
            "name": TOKEN_ENV,
            "valueFrom": {"secretKeyRef": {"name": names.secret(key), "key": "token"}},
        },
        {"name": "TRIREME_AGENT_PORT", "value": str(AGENT_PORT)},
        {"name": "TRIREME_SCRATCH", "value": "/scratch"},
        field("POD_IP", "status.podIP"),
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("NODE_NAME", "spec.nodeName"),
    ]
    bundle = spec.checkpoint.ca_bundle
    if bundle is not None:
        env.append({"name": "AWS_CA_BUNDLE", "value": f"{CA_PATH}/{bundle.config_map_ref.key}"})
    if _credentials_secret(spec):
        env.append({"name": "TRIREME_CREDENTIALS_DIR", "value": CREDENTIALS_PATH})
    env += [entry.model_dump(mode="json", by_alias=True, exclude_none=True) for entry in spec.workers.env]
    return env


def _env_from(spec: TrainingJobSpec) -> list[dict[str, Any]]:
    sources = [dict(source) for source in spec.workers.env_from]
    # Beside the volume: other variables come this way only, and a Secret that is missing is told of by the kubelet in
    # the container's state, for a volume only in an event.
    if secret := _credentials_secret(spec):
        sources.append({"secretRef": {"name": secret}})
    return sources


def _credentials_secret(spec: TrainingJobSpec) -> str | None:
    """Name of the Secret with the store's credentials."""
    credentials = spec.checkpoint.credentials
    if credentials is None or credentials.secret_ref is None:
        return None
    return credentials.secret_ref.name


def _volumes(names: Names, spec: TrainingJobSpec) -> list[dict[str, Any]]:
    workers = spec.workers
    volumes: list[dict[str, Any]] = [
        {"name": "trireme-config", "configMap": {"name": names.config_map}},
        {"name": "trireme-scratch", "emptyDir": {}},
    ]
    shared = _shared_memory(spec)
    if shared:
        volumes.append({"name": "trireme-shm", "emptyDir": {"medium": "Memory", "sizeLimit": shared}})
    bundle = spec.checkpoint.ca_bundle
    if bundle is not None:
        reference = bundle.config_map_ref
        items = [{"key": reference.key, "path": reference.key}]
        volumes.append({"name": "trireme-ca", "configMap": {"name": reference.name, "items": items}})
    if secret := _credentials_secret(spec):
        # The kubelet brings later changes into a volume, never into a container's environment.
        volumes.append({"name": "trireme-credentials", "secret": {"secretName": secret, "optional": True}})
    if files := _files(names, spec):
        volumes.append({"name": "trireme-files", "projected": {"sources": files}})
    volumes += [v.model_dump(mode="json", by_alias=True, exclude_none=True) for v in workers.volumes]
    return volumes


def _files(names: Names, spec: TrainingJobSpec) -> list[dict[str, Any]]:
    """Sources of a projected volume with the files that the job's kind asks for."""
    return [
        {"configMap": {"name": file.config_map, "items": [{"key": file.key, "path": file.name}]}}
        for file in kind_named(names.kind).config_map_files(spec)
    ]


def _shared_memory(spec: TrainingJobSpec) -> str | None:
    """Size of /dev/shm: NCCL's rings and data loaders do not fit into the 64 MiB that container runtimes give."""
    workers = spec.workers
    if workers.shared_memory or workers.accelerator.kind == "cpu":
        return workers.shared_memory
    limit = workers.memory_limit_bytes
    return DEFAULT_SHARED_MEMORY if limit is None else str(limit // 2)


def _container_security(given: dict[str, Any] | None) -> dict[str, Any]:
    """The Restricted pod security standard, unless the spec says otherwise field by field."""
    wanted = given or {}
    capabilities = {"drop": ["ALL"], **(wanted.get("capabilities") or {})}
    return {"allowPrivilegeEscalation": False, **wanted, "capabilities": capabilities}


def _pod_security(given: dict[str, Any] | None) -> dict[str, Any]:
    """The Restricted pod security standard, unless the spec says otherwise field by field."""
    base = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # Not file by file at every start: a volume of data may hold millions.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    return {**base, **(given or {})}


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
