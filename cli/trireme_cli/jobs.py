"""Training jobs as the command line sees them: find one, read its status, ask its agents."""

import base64
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from trireme.protocol import Report
from trireme.resources.status import JobStatus
from trireme_cli.cluster import Cluster, ClusterError, ResourceType

GROUP = "trireme.dev"


@dataclass(frozen=True)
class Job:
    """One job of any kind."""

    type: ResourceType
    raw: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"]["uid"])

    @property
    def status(self) -> JobStatus:
        return JobStatus.model_validate(self.raw.get("status") or {})


def find_job(cluster: Cluster, name: str, namespace: str) -> Job:
    """The job of this name, whatever its kind. Raises ClusterError when there is none, or more than one."""
    found = []
    for resource in cluster.types():
        if resource.group != GROUP:
            continue
        try:
            found.append(Job(resource, cluster.request("GET", resource.path(namespace, name))))
        except ClusterError as error:
            if error.status != 404:
                raise
    if not found:
        raise ClusterError(404, f"no Trireme job {name!r} in namespace {namespace!r}", "NotFound")
    if len(found) > 1:
        kinds = ", ".join(f"{j.type.singular}/{j.name}" for j in found)
        raise ClusterError(409, f"{name!r} is ambiguous: {kinds}", "Conflict")
    return found[0]


def read_secret(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    """The decoded data of a Secret. Raises ClusterError."""
    data = cluster.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}").get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


class AgentClient:
    """Reads the report of one job's agents, with the job's own token; needs a route to the pods."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        secret = f"{job.name}-{job.uid[:8]}-agent"
        self._token = read_secret(cluster, job.namespace, secret)["token"]

    def report(self, address: str, port: int = 7070, timeout_seconds: float = 1.0) -> Report | None:
        """The agent's report, or None while it does not answer."""
        request = urllib.request.Request(
            f"http://{address}:{port}/v1/report", headers={"Authorization": f"Bearer {self._token}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_seconds) as response:
                return Report.model_validate(json.load(response))
        except (OSError, urllib.error.URLError, ValueError):
            return None
