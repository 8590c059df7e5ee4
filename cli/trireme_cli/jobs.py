"""Training jobs as the command line sees them: find one, read its status, ask its agents."""

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trireme.protocol import Report
from trireme.resources import GROUP, KindInfo, all_kinds, job_kinds
from trireme.resources.status import JobStatus
from trireme_cli.cluster import Cluster, ClusterError, ResourceType

# Pods are asked on the route that the operator takes, never through a proxy.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Resource:
    """One object of any of Trireme's kinds."""

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


@dataclass(frozen=True)
class Job(Resource):
    """One job of any kind."""

    @property
    def status(self) -> JobStatus:
        return JobStatus.model_validate(self.raw.get("status") or {})


def get_resource(cluster: Cluster, resource: ResourceType, name: str, namespace: str) -> Resource | None:
    """An object of one kind; None when there is none of this name. Raises ClusterError."""
    try:
        return Resource(resource, cluster.request("GET", resource.path(namespace, name)))
    except ClusterError as error:
        if error.status != 404:
            raise
        return None


def find_resource(
    cluster: Cluster, name: str, namespace: str, kinds: Iterable[KindInfo[Any]] | None = None
) -> Resource:
    """The object of this name, of whichever of the kinds. Raises ClusterError when there is none, or more than one."""
    wanted = {info.plural for info in (all_kinds() if kinds is None else kinds)}
    found = []
    for resource in cluster.types():
        if resource.group != GROUP or resource.plural not in wanted:
            continue
        if (one := get_resource(cluster, resource, name, namespace)) is not None:
            found.append(one)
    if not found:
        raise ClusterError(404, f"no Trireme resource {name!r} in namespace {namespace!r}", "NotFound")
    if len(found) > 1:
        among = ", ".join(f"{one.type.singular}/{one.name}" for one in found)
        raise ClusterError(409, f"{name!r} is ambiguous: {among}", "Conflict")
    return found[0]


def find_job(cluster: Cluster, name: str, namespace: str) -> Job:
    """The job of this name, whatever its kind. Raises ClusterError when there is none, or more than one."""
    found = find_resource(cluster, name, namespace, job_kinds())
    return Job(found.type, found.raw)


def read_secret(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    """The decoded data of a Secret. Raises ClusterError."""
    data = cluster.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}").get("data") or {}
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def token_secrets(pod: dict[str, Any]) -> set[str]:
    """Names of the Secrets with the token that a pod's agent asks for."""
    env = [variable for container in pod["spec"]["containers"] for variable in container.get("env") or []]
    sources = [variable.get("valueFrom") or {} for variable in env if variable["name"] == "TRIREME_AGENT_TOKEN"]
    return {source["secretKeyRef"]["name"] for source in sources if "secretKeyRef" in source}


class AgentClient:
    """Reads the report of one job's agents, with the tokens of its pods; needs a route to the pods."""

    def __init__(self, cluster: Cluster, job: Job) -> None:
        """Raises ClusterError, also while the job has no pod."""
        query = {"labelSelector": f"{GROUP}/job-uid={job.uid}"}
        pods = cluster.request("GET", f"/api/v1/namespaces/{job.namespace}/pods", query=query)["items"]
        secrets = sorted({name for pod in pods for name in token_secrets(pod)})
        if not secrets:
            raise ClusterError(404, f"job {job.name} has no pods", "NotFound")
        self._tokens = [read_secret(cluster, job.namespace, name)["token"] for name in secrets]

    def report(self, address: str, port: int = 7070, timeout_seconds: float = 1.0) -> Report | None:
        """The agent's report, or None while it does not answer."""
        for token in self._tokens:
            request = urllib.request.Request(
                f"http://{address}:{port}/v1/report", headers={"Authorization": f"Bearer {token}"}
            )
            try:
                with _DIRECT.open(request, timeout=timeout_seconds) as response:
                    return Report.model_validate(json.load(response))
            except urllib.error.HTTPError as error:
                if error.code != 401:
                    return None
            except (OSError, ValueError):
                return None
        return None
