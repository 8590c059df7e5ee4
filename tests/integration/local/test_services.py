"""Services are reachable at their cluster IPs, and lead to pods that are ready and stay."""

import concurrent.futures
import contextlib
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from local_cluster_tools import Kubectl, shell_pod

from trireme_local import partition

Json = dict[str, Any]
SERVER = """
import http.server, os, signal, sys, threading
ready = True
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        global ready
        if self.path == "/fail":
            ready = False
        code = 200 if ready or self.path != "/ready" else 503
        body = f"{os.environ['VERSION']} {os.getpid()}".encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer((os.environ["POD_IP"], 8080), Handler).serve_forever()
"""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def web(name: str, version: str, replicas: int = 2) -> Json:
    """A Deployment of small HTTP servers that tell their version and process id."""
    container = {
        "name": "web",
        "image": "python:3",
        "command": ["python", "-c", SERVER],
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [
            {"name": "VERSION", "value": version},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1, "failureThreshold": 1},
        # As everywhere: word that a pod goes needs a moment, and until then it has to answer.
        "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
    }
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"terminationGracePeriodSeconds": 5, "containers": [container]},
            },
        },
    }


def service(name: str, **spec: Any) -> Json:
    """A Service of port 8000 that leads to the port `http` of the pods with the same name."""
    ports = [{"name": "http", "port": 8000, "targetPort": "http"}]
    body = {"selector": {"app": name}, "ports": ports, **spec}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def get(address: str, path: str = "/", port: int = 8000) -> str:
    """The body of an answer, on a connection of its own."""
    with _DIRECT.open(f"http://{address}:{port}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def answers(address: str) -> bool:
    with contextlib.suppress(OSError):
        return bool(get(address))
    return False


class Client:
    """Asks without pause, on a new connection each time, and remembers all answers and errors."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers[get(self._address)] += 1
            except (OSError, urllib.error.URLError) as error:
                self.errors.append(repr(error))
            time.sleep(0.01)

    @contextlib.contextmanager
    def asking(self) -> Iterator["Client"]:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            asked = [pool.submit(self._ask) for _ in range(2)]
            try:
                yield self
            finally:
                self._stop.set()
        for item in asked:
            item.result()


@pytest.fixture(scope="module")
def address(cluster: Any) -> Iterator[str]:
    """The cluster IP of Service `web` in front of two servers of version one."""
    kubectl: Kubectl = cluster.kubectl
    kubectl.apply(web("web", "one"), service("web"))
    kubectl.run("rollout", "status", "deployment/web", "--timeout=50s")
    found = str(kubectl.get("service", "web")["spec"]["clusterIP"])
    kubectl.wait("the service answers", lambda: answers(found))
    yield found
    kubectl.run("delete", "deployment,service", "web", "--wait=false")


def test_every_request_is_answered_while_a_rolling_update_replaces_both_pods(address: str, kubectl: Kubectl) -> None:
    with Client(address).asking() as client:
        time.sleep(0.5)
        kubectl.run("set", "env", "deployment/web", "VERSION=two")
        kubectl.run("rollout", "status", "deployment/web", "--timeout=50s")
        time.sleep(1)
    assert client.errors == []
    assert sum(client.answers.values()) > 200
    versions = [answer.split()[0] for answer in client.answers]
    assert Counter(versions) == {"one": 2, "two": 2}, "each pod of both versions has answered"


def test_a_pod_that_is_not_ready_gets_no_connection_and_its_death_harms_nobody(address: str, kubectl: Kubectl) -> None:
    sick = int(get(address, "/fail").split()[1])

    def ready() -> int:
        return int(kubectl.get("deployment", "web")["status"].get("readyReplicas", 0))

    kubectl.wait("one pod is not ready", lambda: ready() == 1)
    with Client(address).asking() as client:
        time.sleep(0.5)
        os.kill(sick, signal.SIGKILL)
        kubectl.wait("the container is started again", lambda: ready() == 2)
        time.sleep(0.5)
    assert client.errors == []
    processes = {int(answer.split()[1]) for answer in client.answers}
    assert sick not in processes
    assert len(processes) == 2, "the one that was started again answers, too"


def test_a_connection_that_a_pod_refuses_goes_to_the_next_one(kubectl: Kubectl) -> None:
    """Two ports of one Service; nothing listens on the second port of one of the two pods."""
    for name, port in (("listens", 9000), ("refuses", 9001)):
        script = (
            f"import http.server as h, os; h.test(h.SimpleHTTPRequestHandler, port={port}, bind=os.environ['POD_IP'])"
        )
        env = [{"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
        container = {"image": "python:3", "command": ["python", "-c", script], "env": env}
        pod = shell_pod(name, "", container=container)
        pod["metadata"]["labels"] = {"app": "halves"}
        kubectl.apply(pod)
    ports = [{"name": "a", "port": 8000, "targetPort": 9000}, {"name": "b", "port": 8001, "targetPort": 9001}]
    kubectl.apply(service("halves", ports=ports))
    for name in ("listens", "refuses"):
        kubectl.wait_phase(name, "Running")
    found = kubectl.get("service", "halves")["spec"]["clusterIP"]
    kubectl.wait("both ports answer", lambda: answers(found))
    kubectl.wait("the second port answers", lambda: _closed(found, 8001) == b"")
    for _ in range(10):
        assert "Directory listing" in get(found)
        assert "Directory listing" in get(found, port=8001)
    kubectl.delete_pods("listens", "refuses")
    kubectl.wait("no pod: refused", lambda: _refused(found, 8000))
    kubectl.run("delete", "service", "halves")


def _closed(address: str, port: int) -> bytes | None:
    """What a connection reads until its end when it sends nothing; None when it is refused."""
    try:
        with socket.create_connection((address, port), timeout=5) as connection:
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(100)
    except OSError:
        return None


def _refused(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


ECHO = """
import os, socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        total = 0
        while data := self.request.recv(65536):
            total += len(data)
            self.request.sendall(data)
        self.request.sendall(b"end %d" % total)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server((os.environ["POD_IP"], 8080), Echo).serve_forever()
"""


def test_streams_are_whole_connections_outlive_readiness_and_none_is_left_open(cluster: Any) -> None:
    kubectl: Kubectl = cluster.kubectl
    deployment = web("echo", "one", 1)
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container |= {
        "command": ["python", "-c", ECHO],
        "readinessProbe": {
            "exec": {"command": ["sh", "-c", "test ! -e unready"]}, "periodSeconds": 1, "failureThreshold": 1
        },
    }  # fmt: skip
    kubectl.apply(deployment, service("echo"))
    kubectl.run("rollout", "status", "deployment/echo", "--timeout=50s")
    found = kubectl.get("service", "echo")["spec"]["clusterIP"]
    kubectl.wait("the service answers", lambda: _closed(found, 8000) == b"end 0")
    proxy = psutil.Process(cluster.local.state().daemons["proxy"].pid)
    before = proxy.num_fds()
    with socket.create_connection((found, 8000), timeout=20) as kept:
        pod = kubectl.run("get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[0].metadata.name}")
        _exchange(kept, b"before")
        size = 20 * 1024 * 1024
        with socket.create_connection((found, 8000), timeout=20) as large:
            sender = threading.Thread(target=_send, args=(large, size))
            time.sleep(0.2)  # nobody reads yet: the sender has to wait
            sender.start()
            got = bytearray()
            while data := large.recv(1 << 20):
                got += data
            sender.join()
        assert len(got) == size + len(f"end {size}")
        assert got.endswith(f"end {size}".encode())
        home = _home(cluster, pod)
        (home / "unready").touch()
        kubectl.wait("refused", lambda: _refused(found, 8000))
        _exchange(kept, b"after")
    kubectl.wait("every descriptor is given back", lambda: proxy.num_fds() <= before)
    kubectl.run("delete", "deployment,service", "echo", "--wait=false")


def _send(connection: socket.socket, size: int) -> None:
    connection.sendall(b"x" * size)
    connection.shutdown(socket.SHUT_WR)


def _exchange(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    got = b""
    while len(got) < len(data):
        got += connection.recv(100)
    assert got == data


def _home(cluster: Any, pod: str) -> Any:
    """The working directory of the pod's container."""
    found = cluster.kubectl.get("pod", pod)
    directory = cluster.local.directory / "nodes" / found["spec"]["nodeName"] / "pods" / found["metadata"]["uid"]
    return next(path for path in directory.rglob("root") if path.is_dir())


@pytest.mark.skipif(
    partition.missing_requirements() is not None, reason=f"partition needs {partition.missing_requirements()}"
)
def test_a_pod_on_a_node_that_is_cut_off_is_passed_over_until_it_is_back(cluster: Any) -> None:
    kubectl: Kubectl = cluster.kubectl
    for node in ("node-2", "node-3"):
        template = web("isles", node, 1)["spec"]["template"]
        spec = {**template["spec"], "nodeName": node}
        kubectl.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node, **template["metadata"]}, "spec": spec}
        )
    kubectl.apply(service("isles"))
    found = kubectl.get("service", "isles")["spec"]["clusterIP"]
    ask = f"print(u.urlopen('http://{found}:8000/').read())"
    client = f"import urllib.request as u, time\nwhile True:\n  {ask}\n  time.sleep(.1)"
    container = {"image": "python:3", "command": ["python", "-uc", client]}
    kubectl.wait("both answer", lambda: answers(found) and len({get(found) for _ in range(20)}) == 2)
    kubectl.apply(shell_pod("visitor", "", container=container, nodeName="node-3"))
    kubectl.wait("pods reach the service", lambda: kubectl.run("logs", "visitor").count("node-") > 20)
    try:
        cluster.local.kill_node("node-3", "partition")
        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            seen = {answer.split()[0] for answer in pool.map(lambda _: get(found), range(12))}
        assert seen == {"node-2"}
    finally:
        cluster.local.revive_node("node-3")
    size = len(kubectl.run("logs", "visitor"))
    kubectl.wait("the visitor's node is back", lambda: len(kubectl.run("logs", "visitor")) > size)
    kubectl.wait("both answer again", lambda: len({get(found) for _ in range(20)}) == 2)
    kubectl.delete_pods("node-2", "node-3", "visitor")
    kubectl.run("delete", "service", "isles")


def test_pods_are_told_the_addresses_of_services_unless_they_do_not_want_to(address: str, kubectl: Kubectl) -> None:
    script = "echo $WEB_SERVICE_HOST $WEB_SERVICE_PORT_HTTP $WEB_PORT $KUBERNETES_SERVICE_PORT_HTTPS."
    kubectl.apply(shell_pod("told", script), shell_pod("untold", script, enableServiceLinks=False))
    for name, expected in (("told", f"{address} 8000 tcp://{address}:8000 6443."), ("untold", "6443.")):
        kubectl.wait_phase(name, "Succeeded")
        assert kubectl.run("logs", name).split() == expected.split()
    kubectl.delete_pods("told", "untold")
