"""Service, ConfigMap and Secret of a job."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Any

from trireme.protocol import JobConfig, JobIdentity, ModelRef, StoreConfig
from trireme.protocol.base import METRICS_PORT
from trireme.resources.common import TrainingJobSpec
from trireme.resources.status import InputStatus, Resolved
from trireme_operator.build.names import AGENT_PORT, Names


def agent_token(key: bytes, job_uid: str) -> str:
    """The job's bearer token: HMAC-SHA256 of its UID under the operator's key, so that it is stored nowhere else."""
    return hmac.new(key, job_uid.encode(), hashlib.sha256).hexdigest()


def service(names: Names) -> dict[str, Any]:
    """Headless Service: a stable DNS name per pod, also before the pods are ready."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": names.metadata(names.service),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": names.selector(),
            "ports": [
                {"name": "agent", "port": AGENT_PORT, "protocol": "TCP"},
                {"name": "metrics", "port": METRICS_PORT, "protocol": "TCP"},
            ],
        },
    }


def job_config(
    names: Names, spec: TrainingJobSpec, resolved: Resolved, inputs: Sequence[InputStatus] = ()
) -> JobConfig:
    """What the pods are told about the job: only what never changes."""
    checkpoint = spec.checkpoint
    return JobConfig(
        protocol=resolved.protocol,
        job=JobIdentity(kind=names.kind, namespace=names.namespace, name=names.job, uid=names.uid),
        program=resolved.program,
        spec=resolved.spec,
        plan=resolved.plan,
        slots=resolved.slots,
        ranks_per_slot=resolved.ranks_per_slot,
        # The CA bundle comes as AWS_CA_BUNDLE, like the credentials.
        store=StoreConfig(
            uri=checkpoint.uri,
            endpoint=checkpoint.endpoint,
            region=checkpoint.region,
            path_style=checkpoint.path_style,
        ),
        inputs={i.field: ModelRef(uri=i.uri, digest=i.digest) for i in inputs if i.uri and i.digest},
    )


def config_map(
    names: Names, spec: TrainingJobSpec, resolved: Resolved, inputs: Sequence[InputStatus] = ()
) -> dict[str, Any]:
    """Immutable ConfigMap with job.json."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.metadata(names.config_map),
        "immutable": True,
        "data": {"job.json": job_config(names, spec, resolved, inputs).to_json()},
    }


def agent_secret(names: Names, key: bytes) -> dict[str, Any]:
    """Secret with the bearer token that the agents ask for."""
    token = base64.b64encode(agent_token(key, names.uid).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.metadata(names.secret(key)),
        "type": "Opaque",
        "immutable": True,
        "data": {"token": token},
    }
