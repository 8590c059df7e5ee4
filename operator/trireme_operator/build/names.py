"""Names, labels and owner of a job's objects. All deterministic, so that two leaders cannot create two of anything."""

import hashlib
from dataclasses import dataclass
from typing import Any

from trireme.resources import GROUP, VERSION

LABEL_NAME = f"{GROUP}/job-name"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_KIND = f"{GROUP}/job-kind"
LABEL_SLOT = f"{GROUP}/slot"
CONTAINER = "trainer"
AGENT_PORT = 7070
TOKEN_ENV = "TRIREME_AGENT_TOKEN"


def controlled_by(raw: dict[str, Any], uid: str) -> bool:
    """Whether the object's controller is the one with this UID."""
    owners = raw["metadata"].get("ownerReferences") or []
    return any(owner.get("controller") and owner.get("uid") == uid for owner in owners)


@dataclass(frozen=True)
class Names:
    """What the objects of one job are called."""

    kind: str
    namespace: str
    job: str
    uid: str

    @property
    def service(self) -> str:
        # Not the job's plain name: a Service of that name may be the user's own.
        return f"{self.job}-{self.uid[:8]}"

    @property
    def config_map(self) -> str:
        return f"{self.job}-{self.uid[:8]}-config"

    def secret(self, key: bytes) -> str:
        """Name of the Secret with the token under one key of the operator: a Secret is created and never changed."""
        fingerprint = hashlib.sha256(b"fingerprint" + key).hexdigest()[:6]
        return f"{self.job}-{self.uid[:8]}-agent-{fingerprint}"

    def pod(self, slot: int) -> str:
        return f"{self.job}-{slot}"

    def selector(self) -> dict[str, str]:
        """Labels that only this job's pods have."""
        return {LABEL_UID: self.uid}

    def labels(self) -> dict[str, str]:
        """Labels of every object of the job."""
        return {
            LABEL_NAME: self.job,
            LABEL_UID: self.uid,
            LABEL_KIND: self.kind,
            "app.kubernetes.io/name": "trireme",
            "app.kubernetes.io/instance": self.job,
            "app.kubernetes.io/component": "trainer",
            "app.kubernetes.io/part-of": "trireme",
            "app.kubernetes.io/managed-by": "trireme-operator",
        }

    def owner(self) -> dict[str, Any]:
        """The owner reference by which the cluster deletes the objects with the job."""
        return {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": self.kind,
            "name": self.job,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": False,
        }

    def metadata(self, name: str, **more: Any) -> dict[str, Any]:
        """metadata of one object."""
        return {
            "name": name,
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": [self.owner()],
            **more,
        }
