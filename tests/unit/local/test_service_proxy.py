"""Where a connection to a Service goes, and what happens to its bytes."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psutil
import pytest

from trireme_local.network import LAST_NODE, node_network, service_network
from trireme_local.node.environment import linked_services, service_variables
from trireme_local.proxy.balancer import Balancer
from trireme_local.proxy.listeners import Listeners
from trireme_local.proxy.routing import Address, Route, routes, unreachable

Json = dict[str, Any]
# Nobody else's: the clusters' networks begin at 127.16.
HOST = "127.9.0.1"


def service(name: str = "web", **spec: Any) -> Json:
    body = {
        "clusterIP": "127.20.240.2",
        "type": "ClusterIP",
        "selector": {"app": "web"},
        "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        **spec,
    }
    return {"metadata": {"name": name, "namespace": "n", "uid": name}, "spec": body}


def pod(ip: str, *, ready: bool = True, going: bool = False, port: int = 8080, namespace: str = "n") -> Json:
    metadata: Json = {"name": ip, "namespace": namespace, "labels": {"app": "web", "more": "x"}}
    if going:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    status = {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": str(ready)}]}
    containers = [{"name": "c", "ports": [{"name": "http", "containerPort": port, "protocol": "TCP"}]}]
    return {"metadata": metadata, "spec": {"containers": containers}, "status": status}


def endpoints(subject: Json, *pods: Json) -> dict[int, tuple[Address, ...]]:
    return {port: route.endpoints for (_, port), route in routes([subject], pods).items()}


def test_only_pods_that_are_ready_and_stay_get_connections() -> None:
    pods = [
        pod("127.20.1.2"),
        pod("127.20.1.3", ready=False),
        pod("127.20.1.4", going=True),
        pod("127.20.1.5", namespace="other"),
        {**pod("127.20.1.6"), "status": {"phase": "Pending"}},
    ]
    assert endpoints(service(), *pods) == {80: (("127.20.1.2", 8080),)}
    taken = endpoints(service(publishNotReadyAddresses=True), *pods)
    assert [ip for ip, _ in taken[80]] == ["127.20.1.2", "127.20.1.3", "127.20.1.4"]


def test_a_named_port_is_that_of_each_pod_and_a_number_is_itself() -> None:
    ports = [
        {"name": "a", "port": 80, "targetPort": "http"},
        {"name": "b", "port": 81, "targetPort": 9000},
        {"name": "c", "port": 82},
        {"name": "d", "port": 83, "targetPort": "none"},
        {"name": "e", "port": 84, "protocol": "UDP"},
    ]
    found = endpoints(service(ports=ports), pod("127.20.1.2", port=1), pod("127.20.1.3", port=2))
    assert found == {
        80: (("127.20.1.2", 1), ("127.20.1.3", 2)),
        81: (("127.20.1.2", 9000), ("127.20.1.3", 9000)),
        82: (("127.20.1.2", 82), ("127.20.1.3", 82)),
        83: (),
    }
    assert "84/UDP" in unreachable(service(ports=ports))


@pytest.mark.parametrize(
    "spec", [{"clusterIP": "None"}, {"type": "ExternalName"}, {"selector": None}, {"clusterIP": "10.96.0.7"}]
)
def test_a_service_without_an_address_here_is_nobodys(spec: Json) -> None:
    assert endpoints(service(**spec), pod("127.20.1.2")) == {}
    assert bool(unreachable(service(**spec))) == (spec == {"clusterIP": "10.96.0.7"})


def test_a_client_stays_with_its_endpoint_where_the_service_says_so() -> None:
    now = [0.0]
    ends = tuple(("127.20.1.2", port) for port in range(20))
    balancer = Balancer(Route(("n", "web"), ends, affinity_seconds=10), clock=lambda: now[0])
    balancer.connected("127.0.0.1", ends[7])
    assert all(balancer.order("127.0.0.1")[0] == ends[7] for _ in range(20))
    assert sorted(balancer.order("127.0.0.1")) == sorted(ends)
    assert {balancer.order("127.0.0.2")[0] for _ in range(100)} != {ends[7]}
    now[0] = 11.0
    assert {balancer.order("127.0.0.1")[0] for _ in range(100)} != {ends[7]}
    balancer.connected("127.0.0.1", ends[7])
    balancer.route = Route(("n", "web"), ends[:3], affinity_seconds=10)
    assert sorted(balancer.order("127.0.0.1")) == sorted(ends[:3]), "its endpoint is gone"


def test_services_have_addresses_that_no_node_has() -> None:
    last = node_network(20, LAST_NODE)
    assert not last.overlaps(service_network(20))
    assert node_network(20, 1).supernet(new_prefix=16) == service_network(20).supernet(new_prefix=16)
    for number in (0, LAST_NODE + 1):
        with pytest.raises(ValueError, match=f"between 1 and {LAST_NODE}"):
            node_network(20, number)


def test_containers_find_services_in_their_environment() -> None:
    ports = [{"name": "http-x", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]
    found = service_variables([service("my-web", ports=ports), service("head", clusterIP="None")])
    assert found == {
        "MY_WEB_SERVICE_HOST": "127.20.240.2",
        "MY_WEB_SERVICE_PORT": "80",
        "MY_WEB_SERVICE_PORT_HTTP_X": "80",
        "MY_WEB_SERVICE_PORT_DNS": "53",
        "MY_WEB_PORT": "tcp://127.20.240.2:80",
        "MY_WEB_PORT_80_TCP": "tcp://127.20.240.2:80",
        "MY_WEB_PORT_80_TCP_PROTO": "tcp",
        "MY_WEB_PORT_80_TCP_PORT": "80",
        "MY_WEB_PORT_80_TCP_ADDR": "127.20.240.2",
        "MY_WEB_PORT_53_UDP": "udp://127.20.240.2:53",
        "MY_WEB_PORT_53_UDP_PROTO": "udp",
        "MY_WEB_PORT_53_UDP_PORT": "53",
        "MY_WEB_PORT_53_UDP_ADDR": "127.20.240.2",
    }
    other = {**service("other"), "metadata": {"name": "other", "namespace": "elsewhere"}}
    subject = {"metadata": {"namespace": "n"}, "spec": {}}
    named = [item["metadata"]["name"] for item in linked_services(subject, [service(), other], "127.20.0.1", 6443)]
    assert named == ["web", "kubernetes"]
    subject["spec"] = {"enableServiceLinks": False}
    [api] = linked_services(subject, [service(), other], "127.20.0.1", 6443)
    assert service_variables([api])["KUBERNETES_SERVICE_HOST"] == "127.20.0.1"


# -- with sockets --------------------------------------------------------------------------------------------------

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def free_port(host: str = HOST) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def upstream(handler: Handler) -> AsyncIterator[Address]:
    server = await asyncio.start_server(handler, HOST, 0)
    try:
        yield (HOST, server.sockets[0].getsockname()[1])
    finally:
        server.close()


@contextlib.asynccontextmanager
async def proxied(*ends: Address) -> AsyncIterator[tuple[Listeners, Address]]:
    listeners = Listeners(lambda route, why: pytest.fail(why))
    address = (HOST, free_port())
    assert await listeners.apply({address: Route(("n", "web"), ends)})
    try:
        yield listeners, address
    finally:
        await listeners.close()


async def echo_until_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    total = 0
    while data := await reader.read(65536):
        total += len(data)
        writer.write(data)
        await writer.drain()
    writer.write(b"|%d" % total)
    writer.close()


async def test_an_end_is_passed_on_and_the_answer_to_it_comes_back() -> None:
    async with upstream(echo_until_end) as end, proxied(end) as (_, address):
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"hello")
        writer.write_eof()
        async with asyncio.timeout(5):
            assert await reader.read(-1) == b"hello|5"
        writer.close()


async def test_a_slow_reader_slows_its_sender_down() -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536

    async with upstream(flood) as end, proxied(end) as (_, address):
        reader, writer = await asyncio.open_connection(*address, limit=1024)
        await reader.read(1)
        previous = -1
        async with asyncio.timeout(10):
            while sent != previous:
                previous = sent
                await asyncio.sleep(0.3)
        assert sent < 64 * 1024 * 1024
        writer.transport.abort()


async def test_refused_connections_go_on_and_without_an_endpoint_they_are_refused_here_too() -> None:
    dead = (HOST, free_port())
    async with upstream(echo_until_end) as end, proxied(dead, end) as (listeners, address):
        for _ in range(20):
            reader, writer = await asyncio.open_connection(*address)
            writer.write_eof()
            assert await reader.read(-1) == b"|0"
            writer.close()
        kept_reader, kept = await asyncio.open_connection(*address)
        kept.write(b"a")
        assert await kept_reader.readexactly(1) == b"a"
        await listeners.apply({address: Route(("n", "web"), ())})
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        kept.write(b"b")
        assert await kept_reader.readexactly(1) == b"b", "an open connection is left alone"
        kept.close()
        await listeners.apply({address: Route(("n", "web"), (dead,))})
        reader, writer = await asyncio.open_connection(*address)
        with pytest.raises(ConnectionResetError):
            await reader.read(-1)
        writer.close()


async def test_a_reset_is_passed_on_and_no_descriptor_is_kept() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()

    async with upstream(rude) as end, proxied(end) as (_, address):
        before = psutil.Process().num_fds()
        for _ in range(30):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read(-1)
            writer.close()
        deadline = asyncio.get_running_loop().time() + 5
        while psutil.Process().num_fds() > before:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)


async def test_an_address_that_cannot_be_had_is_said_and_had_later() -> None:
    said: list[str] = []
    listeners = Listeners(lambda route, why: said.append(why))
    async with upstream(echo_until_end) as end:
        with socket.socket() as squatter:
            squatter.bind((HOST, 0))
            squatter.listen()
            address = (HOST, squatter.getsockname()[1])
            wanted = {address: Route(("n", "web"), (end,))}
            assert not await listeners.apply(wanted)
        assert "cannot listen" in said[0]
        assert await listeners.apply(wanted)
        await listeners.close()
