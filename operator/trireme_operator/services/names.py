"""Names, labels and owner of a service's objects. All deterministic."""

from typing import Any

from trireme.resources import GROUP, VERSION

LABEL_NAME = f"{GROUP}/service-name"
LABEL_UID = f"{GROUP}/service-uid"
LABEL_REVISION = f"{GROUP}/revision"
CONTAINER = "serving"
SERVING_PORT = 8000
"""Port of vLLM in the pod; the Service's own port leads to it."""


def selector(uid: str, revision: str | None = None) -> dict[str, str]:
    """Labels that only this service's pods have, or those of one revision."""
    return {LABEL_UID: uid} | ({LABEL_REVISION: revision} if revision else {})


def deployment(service: str, revision: str) -> str:
    """Name of a revision's Deployment."""
    return f"{service}-{revision}"


def adapters(service: str, uid: str) -> str:
    """Name of the ConfigMap that lists the adapters."""
    return f"{service}-{uid[:8]}-adapters"


def budget(service: str, uid: str) -> str:
    """Name of the PodDisruptionBudget: one of the service's plain name may be the user's own."""
    return f"{service}-{uid[:8]}"


def url(address: str, port: int) -> str:
    """Base URL of the API, as OpenAI's clients take it."""
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}/v1"


def metadata(kind: str, namespace: str, service: str, uid: str, name: str, **labels: str) -> dict[str, Any]:
    """metadata of one object of the service, by which the cluster deletes it with the service."""
    owner = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": kind,
        "name": service,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }
    return {
        "name": name,
        "namespace": namespace,
        "labels": {**own_labels(service, uid), **labels},
        "ownerReferences": [owner],
    }


def own_labels(service: str, uid: str) -> dict[str, str]:
    """Labels of every object of the service."""
    return {
        LABEL_NAME: service,
        LABEL_UID: uid,
        "app.kubernetes.io/name": "trireme",
        "app.kubernetes.io/instance": service,
        "app.kubernetes.io/component": "serving",
        "app.kubernetes.io/part-of": "trireme",
        "app.kubernetes.io/managed-by": "trireme-operator",
    }
