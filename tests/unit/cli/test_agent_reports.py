"""The command line asks agents with the tokens that their pods were started with."""

import base64
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import pytest

from trireme.protocol import AgentState, Report
from trireme_cli.cluster import Cluster, ClusterError, ResourceType
from trireme_cli.jobs import AgentClient, Job

REPORT = Report(job_uid="uid", slot=0, pod="p", node="n", attempt=0, state=AgentState.IDLE, ranks_alive=0)
SECRETS = {"job-uid-agent-1": "old", "job-uid-agent-2": "new"}


class FakeCluster:
    def __init__(self, *secrets: str) -> None:
        self.secrets = secrets

    def request(self, method: str, path: str, **more: Any) -> Any:
        kind, _, name = path.removeprefix("/api/v1/namespaces/team/").partition("/")
        if kind == "secrets":
            return {"data": {"token": base64.b64encode(SECRETS[name].encode()).decode()}}
        assert more["query"] == {"labelSelector": "trireme.dev/job-uid=uid"}
        refs = [{"secretKeyRef": {"name": name, "key": "token"}} for name in self.secrets]
        return {
            "items": [
                {"spec": {"containers": [{"env": [{"name": "TRIREME_AGENT_TOKEN", "valueFrom": ref}]}]}} for ref in refs
            ]
        }


class Agent(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Bearer new"
        self.send_response(200 if known else 401)
        self.end_headers()
        if known:
            self.wfile.write(REPORT.to_json().encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Agent) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def client(*secrets: str) -> AgentClient:
    job = Job(cast(ResourceType, None), {"metadata": {"name": "job", "namespace": "team", "uid": "uid"}})
    return AgentClient(cast(Cluster, FakeCluster(*secrets)), job)


def test_pods_made_under_several_keys_of_the_operator_are_all_asked(port: int) -> None:
    assert client("job-uid-agent-1", "job-uid-agent-2").report("127.0.0.1", port) == REPORT
    assert client("job-uid-agent-1").report("127.0.0.1", port) is None


def test_a_job_without_pods_has_nobody_to_ask() -> None:
    with pytest.raises(ClusterError, match="no pods"):
        client()
