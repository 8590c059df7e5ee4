"""Deployment, Service, ConfigMap and PodDisruptionBudget of a service, as manifests."""

import copy
import math
from typing import Any

from trireme.metrics import SCRAPE_ANNOTATIONS
from trireme.protocol import StoreConfig
from trireme.protocol.base import METRICS_PORT
from trireme.protocol.serving import (
    STATUS_PORT,
    AdapterList,
    AdapterRoom,
    AdapterSource,
    ModelSource,
    ServiceIdentity,
    ServingConfig,
)
from trireme.resources.base import parse_quantity_bytes
from trireme.resources.common import Resources
from trireme.resources.inference import InferenceSpec
from trireme.resources.inference_status import TargetStatus
from trireme_operator.build import parts
from trireme_operator.decide.defaults import with_defaults
from trireme_operator.services import names
from trireme_operator.services.model import ServiceView

ADAPTERS_PATH = "/etc/trireme"
CACHE_PATH = "/var/cache/trireme-models"
PROBE_SECONDS = 2
LEAVE_SECONDS = 5
"""For which a pod still takes requests after SIGTERM."""
DEFAULT_CPU_KV_CACHE_BYTES = 512 << 20
"""Of processors no memory is set aside for it, so what is free says nothing."""


def serving_config(service: ServiceView, spec: InferenceSpec, target: TargetStatus) -> ServingConfig:
    """What the pods of a revision are told."""
    on_cpu = spec.pods.accelerator.kind == "cpu"
    room, store = spec.adapter_room, spec.store
    cache = parse_quantity_bytes(spec.kv_cache) if spec.kv_cache else DEFAULT_CPU_KV_CACHE_BYTES if on_cpu else None
    return ServingConfig(
        service=ServiceIdentity(namespace=service.namespace, name=service.name, uid=service.uid),
        revision=target.revision,
        store=StoreConfig(uri="", endpoint=store.endpoint, region=store.region, path_style=store.path_style),
        # Of a URI the digest is not part of the revision: what a replica finds there it verifies and reports.
        model=ModelSource(uri=target.model.uri, digest=None if spec.model.uri else target.model.digest),
        served_name=spec.served_name or service.name,
        task=spec.task,
        chat_template=spec.chat_template,
        dtype=spec.dtype,
        max_model_length=spec.max_model_length,
        max_concurrency=spec.max_concurrency,
        kv_cache_bytes=cache,
        devices=spec.pods.devices,
        on_cpu=on_cpu,
        adapter_room=None if room is None else AdapterRoom(count=room.count, rank=room.rank),
        extra_arguments=spec.extra_args,
        port=names.SERVING_PORT,
        start_deadline_seconds=spec.startup_deadline_seconds,
        drain_seconds=spec.drain_seconds,
    )


def adapters(service: ServiceView, wanted: tuple[AdapterSource, ...]) -> dict[str, Any]:
    """The ConfigMap that follows spec.adapters; pods read it again and again."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(service, names.adapters(service.name, service.uid)),
        "data": {"adapters.json": AdapterList(adapters=list(wanted)).to_json()},
    }


def endpoint(service: ServiceView, revision: str, port: int) -> dict[str, Any]:
    """The Service: a stable address that leads to one revision."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service, service.name),
        "spec": {"type": "ClusterIP", **leading(service.uid, revision, port)},
    }


def leading(uid: str, revision: str, port: int) -> dict[str, Any]:
    """The part of the Service's spec that changes."""
    return {
        "selector": names.selector(uid, revision),
        "ports": [{"name": "http", "port": port, "targetPort": "http", "protocol": "TCP"}],
    }


def budget(service: ServiceView, revision: str) -> dict[str, Any]:
    """The PodDisruptionBudget of a revision's pods. It is created once; only the revision changes."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(service, names.budget(service.name, service.uid)),
        "spec": {
            "maxUnavailable": 1,
            # A replica that serves nobody, of a model that is broken say, must not keep its node from being drained.
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            **counting(service.uid, revision),
        },
    }


def counting(uid: str, revision: str) -> dict[str, Any]:
    """The part of the budget's spec that changes."""
    return {"selector": {"matchLabels": names.selector(uid, revision)}}


def deployment(service: ServiceView, spec: InferenceSpec, target: TargetStatus) -> dict[str, Any]:
    """The Deployment of a revision. It is created once; only its number of replicas changes."""
    labels = {names.LABEL_REVISION: target.revision}
    pods = with_defaults(spec.pods, target.device_resource, tuple(target.image_pull_secrets))
    spec = spec.model_copy(update={"pods": pods})
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(service, names.deployment(service.name, target.revision), **labels),
        "spec": {
            "replicas": spec.replicas,
            "revisionHistoryLimit": 0,
            "progressDeadlineSeconds": spec.startup_deadline_seconds + 600,
            "selector": {"matchLabels": names.selector(service.uid, target.revision)},
            "template": {
                "metadata": {
                    "labels": {**spec.pods.labels, **names.own_labels(service.name, service.uid), **labels},
                    "annotations": {**SCRAPE_ANNOTATIONS, **spec.pods.annotations},
                },
                "spec": _pod_spec(service, spec, target),
            },
        },
    }


def pod(service: ServiceView, spec: InferenceSpec, target: TargetStatus) -> dict[str, Any]:
    """A pod of the revision as its Deployment makes it, to be tried without being stored."""
    template = deployment(service, spec, target)["spec"]["template"]
    metadata = {**template["metadata"], "name": f"{service.name}-tried", "namespace": service.namespace}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _metadata(service: ServiceView, name: str, **labels: str) -> dict[str, Any]:
    return names.metadata(service.kind, service.namespace, service.name, service.uid, name, **labels)


def _pod_spec(service: ServiceView, spec: InferenceSpec, target: TargetStatus) -> dict[str, Any]:
    pods, grace = spec.pods, spec.pods.termination_grace_period_seconds
    found = {
        "enableServiceLinks": False,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": spec.drain_seconds + LEAVE_SECONDS + 30 if grace is None else grace,
        "securityContext": parts.pod_security(pods.security_context),
        "containers": [_container(service, spec, target)],
        "volumes": [
            {"name": "trireme-adapters", "configMap": {"name": names.adapters(service.name, service.uid)}},
            *parts.writable_volumes(pods),
            {"name": "trireme-models", **_cache(spec)},
            *parts.shared_memory_volumes(pods),
            *parts.store_volumes(spec.store),
            *parts.manifests(pods.volumes),
        ],
        **parts.placement(pods),
    }
    if pods.affinity:
        found["affinity"] = copy.deepcopy(pods.affinity)
    else:
        # Replicas on one node are lost together.
        found["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": names.selector(service.uid, target.revision)},
            }
        ]
    return found


def _cache(spec: InferenceSpec) -> dict[str, Any]:
    path = spec.cache.host_path
    return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}} if path else {"emptyDir": {}}


def _container(service: ServiceView, spec: InferenceSpec, target: TargetStatus) -> dict[str, Any]:
    pods = spec.pods
    container: dict[str, Any] = {
        "name": names.CONTAINER,
        "image": target.image,
        "command": ["python", "-m", "trireme_serving"],
        "env": _env(service, spec, target),
        "envFrom": parts.env_from(pods, spec.store),
        "ports": [
            {"name": "http", "containerPort": names.SERVING_PORT, "protocol": "TCP"},
            {"name": "status", "containerPort": STATUS_PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"},
        ],
        "resources": _resources(spec).to_manifest(),
        "securityContext": parts.container_security(pods.container_security_context),
        "volumeMounts": [
            {"name": "trireme-adapters", "mountPath": ADAPTERS_PATH, "readOnly": True},
            *parts.writable_mounts(pods),
            {"name": "trireme-models", "mountPath": CACHE_PATH},
            *parts.shared_memory_mounts(pods),
            *parts.store_mounts(spec.store),
            *parts.manifests(pods.volume_mounts),
        ],
        "startupProbe": _probe("/started", failures=math.ceil(spec.startup_deadline_seconds / PROBE_SECONDS) + 30),
        "readinessProbe": _probe("/ready", failures=3),
        "livenessProbe": _probe("/alive", failures=5),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if pods.image_pull_policy:
        container["imagePullPolicy"] = pods.image_pull_policy
    return container


def _probe(path: str, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": "status"},
        "periodSeconds": PROBE_SECONDS,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _env(service: ServiceView, spec: InferenceSpec, target: TargetStatus) -> list[dict[str, Any]]:
    config = serving_config(service, spec, target).to_json()
    return [
        # A kubelet expands $(NAME) in values; $$ stands for a dollar.
        {"name": "TRIREME_SERVICE", "value": config.replace("$", "$$")},
        {"name": "TRIREME_ADAPTERS_FILE", "value": f"{ADAPTERS_PATH}/adapters.json"},
        {"name": "TRIREME_MODEL_CACHE", "value": CACHE_PATH},
        {"name": "TRIREME_SCRATCH", "value": parts.SCRATCH_PATH},
        *parts.writable_env(spec.pods),
        parts.field_env("POD_IP", "status.podIP"),
        parts.field_env("POD_NAME", "metadata.name"),
        parts.field_env("POD_NAMESPACE", "metadata.namespace"),
        parts.field_env("NODE_NAME", "spec.nodeName"),
        *parts.store_env(spec.store),
        *parts.manifests(spec.pods.env),
    ]


def _resources(spec: InferenceSpec) -> Resources:
    """The spec's, and the devices. Devices of processors are counted for training alone: replicas share them."""
    given, device = spec.pods.resources, spec.pods.accelerator.requested_resource
    if device is None or spec.pods.accelerator.kind == "cpu":
        return given
    count = {device: str(spec.pods.devices)}
    return Resources(requests={**given.requests, **count}, limits={**given.limits, **count})
