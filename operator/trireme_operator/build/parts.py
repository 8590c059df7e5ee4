"""Parts that pods of every kind have alike: security, devices, and the way to the object store."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from pydantic import BaseModel

from trireme.resources.common import CaBundle, Credentials, PodSettings

CA_PATH = "/etc/trireme-ca"
CREDENTIALS_PATH = "/etc/trireme-credentials"
USER_ID = 1000
DEFAULT_SHARED_MEMORY = "8Gi"
SCRATCH_PATH = "/scratch"
TMP_PATH = "/tmp"


class StoreAccess(Protocol):
    """A part of a spec that says how pods reach an object store."""

    @property
    def ca_bundle(self) -> CaBundle | None: ...

    @property
    def credentials(self) -> Credentials | None: ...


def env_from(pods: PodSettings, store: StoreAccess) -> list[dict[str, Any]]:
    """Sources of the container's environment."""
    sources = [dict(source) for source in pods.env_from]
    # Beside the volume: other variables come this way only, and a Secret that is missing is told of by the kubelet in
    # the container's state, for a volume only in an event.
    if secret := credentials_secret(store):
        sources.append({"secretRef": {"name": secret}})
    return sources


def credentials_secret(store: StoreAccess) -> str | None:
    """Name of the Secret with the store's credentials."""
    credentials = store.credentials
    if credentials is None or credentials.secret_ref is None:
        return None
    return credentials.secret_ref.name


def shared_memory(pods: PodSettings) -> str | None:
    """Size of /dev/shm: NCCL's rings and data loaders do not fit into the 64 MiB that container runtimes give."""
    if pods.shared_memory or pods.accelerator.kind == "cpu":
        return pods.shared_memory
    limit = pods.memory_limit_bytes
    return DEFAULT_SHARED_MEMORY if limit is None else str(limit // 2)


def field_env(name: str, path: str) -> dict[str, Any]:
    """A variable with a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def store_env(store: StoreAccess) -> list[dict[str, Any]]:
    """Variables that tell where the store's certificates and credentials are mounted."""
    env: list[dict[str, Any]] = []
    if store.ca_bundle is not None:
        env.append({"name": "AWS_CA_BUNDLE", "value": f"{CA_PATH}/{store.ca_bundle.config_map_ref.key}"})
    if credentials_secret(store):
        env.append({"name": "TRIREME_CREDENTIALS_DIR", "value": CREDENTIALS_PATH})
    return env


def store_mounts(store: StoreAccess) -> list[dict[str, Any]]:
    """Mounts of the store's certificates and credentials."""
    mounts: list[dict[str, Any]] = []
    if store.ca_bundle is not None:
        mounts.append({"name": "trireme-ca", "mountPath": CA_PATH, "readOnly": True})
    if credentials_secret(store):
        mounts.append({"name": "trireme-credentials", "mountPath": CREDENTIALS_PATH, "readOnly": True})
    return mounts


def store_volumes(store: StoreAccess) -> list[dict[str, Any]]:
    """Volumes of the store's certificates and credentials."""
    volumes: list[dict[str, Any]] = []
    if store.ca_bundle is not None:
        reference = store.ca_bundle.config_map_ref
        items = [{"key": reference.key, "path": reference.key}]
        volumes.append({"name": "trireme-ca", "configMap": {"name": reference.name, "items": items}})
    if secret := credentials_secret(store):
        # The kubelet brings later changes into a volume, never into a container's environment.
        volumes.append({"name": "trireme-credentials", "secret": {"secretName": secret, "optional": True}})
    return volumes


def shared_memory_volumes(pods: PodSettings) -> list[dict[str, Any]]:
    """The volume at /dev/shm, where one is wanted."""
    size = shared_memory(pods)
    return [{"name": "trireme-shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}] if size else []


def shared_memory_mounts(pods: PodSettings) -> list[dict[str, Any]]:
    """The mount at /dev/shm, where one is wanted."""
    return [{"name": "trireme-shm", "mountPath": "/dev/shm"}] if shared_memory(pods) else []


def writable_env(pods: PodSettings) -> list[dict[str, Any]]:
    """Where programs write that are told no place (caches of compiled kernels, settings): the root is read-only.

    A variable of the spec's takes precedence.
    """
    given = any(variable.name == "HOME" for variable in pods.env)
    return [] if given else [{"name": "HOME", "value": SCRATCH_PATH}]


def writable_volumes(pods: PodSettings) -> list[dict[str, Any]]:
    """The volumes that can be written to: scratch, and /tmp where the spec mounts nothing there."""
    tmp = [] if _mounts_tmp(pods) else [{"name": "trireme-tmp", "emptyDir": {}}]
    return [{"name": "trireme-scratch", "emptyDir": {}}, *tmp]


def writable_mounts(pods: PodSettings) -> list[dict[str, Any]]:
    """The mounts of `writable_volumes`."""
    tmp = [] if _mounts_tmp(pods) else [{"name": "trireme-tmp", "mountPath": TMP_PATH}]
    return [{"name": "trireme-scratch", "mountPath": SCRATCH_PATH}, *tmp]


def _mounts_tmp(pods: PodSettings) -> bool:
    return any(mount.mount_path.rstrip("/") == TMP_PATH for mount in pods.volume_mounts)


def placement(pods: PodSettings) -> dict[str, Any]:
    """Where and as whom pods run, as fields of a pod's spec; what is empty is left out."""
    given: Mapping[str, Any] = {
        "nodeSelector": dict(pods.node_selector),
        "tolerations": [dict(t) for t in pods.tolerations],
        "imagePullSecrets": [{"name": s.name} for s in pods.image_pull_secrets],
        "serviceAccountName": pods.service_account_name,
        "priorityClassName": pods.priority_class_name,
        "schedulerName": pods.scheduler_name,
    }
    return {name: value for name, value in given.items() if value}


def manifests(items: Iterable[BaseModel]) -> list[dict[str, Any]]:
    """Parts of a spec that are handed on, as they stand in a manifest."""
    return [item.model_dump(mode="json", by_alias=True, exclude_none=True) for item in items]


def container_security(given: dict[str, Any] | None) -> dict[str, Any]:
    """The Restricted pod security standard and a read-only root, unless the spec says otherwise field by field."""
    wanted = given or {}
    capabilities = {"drop": ["ALL"], **(wanted.get("capabilities") or {})}
    base = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True}
    return {**base, **wanted, "capabilities": capabilities}


def pod_security(given: dict[str, Any] | None) -> dict[str, Any]:
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
