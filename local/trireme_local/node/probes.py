"""Readiness, liveness and startup probes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import aiohttp

from trireme_local.kube import JsonObject


class ProbeUnsupported(ValueError):
    """The probe's kind is not one that this node can run."""


@dataclass(frozen=True)
class ProbeResult:
    """One probe's outcome."""

    ok: bool
    message: str = ""


# (command, timeout in seconds) -> (exit code, output)
ExecProbe = Callable[[list[str], float], Awaitable[tuple[int, str]]]


def resolve_port(container: JsonObject, port: int | str) -> int:
    """A port number, or the number of the container's port of that name. Raises `ProbeUnsupported`."""
    if isinstance(port, int) or port.isdigit():
        return int(port)
    for declared in container.get("ports") or []:
        if declared.get("name") == port:
            return int(declared["containerPort"])
    raise ProbeUnsupported(f"container {container['name']} has no port named {port!r}")


async def http_get(container: JsonObject, action: JsonObject, pod_ip: str, timeout_seconds: float) -> ProbeResult:
    """GET the action's URL; 200 to 399 is success. Certificates are not verified, as in the kubelet."""
    host = action.get("host") or pod_ip
    scheme = action.get("scheme", "HTTP").lower()
    path = action.get("path") or "/"
    url = f"{scheme}://{host}:{resolve_port(container, action['port'])}/{path.lstrip('/')}"
    headers = {item["name"]: item["value"] for item in action.get("httpHeaders") or []}
    headers.setdefault("User-Agent", "kube-probe/1.36")
    timeout = aiohttp.ClientTimeout(total=timeout_seconds)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, headers=headers, ssl=False, allow_redirects=False) as answer,
        ):
            ok = 200 <= answer.status < 400
            return ProbeResult(ok, "" if ok else f"HTTP probe failed with statuscode: {answer.status}")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return ProbeResult(False, f'Get "{url}": {error or type(error).__name__}')


async def run_probe(container: JsonObject, probe: JsonObject, pod_ip: str, execute: ExecProbe) -> ProbeResult:
    """Run the probe once. Raises `ProbeUnsupported`."""
    timeout_seconds = float(probe.get("timeoutSeconds") or 1)
    if "httpGet" in probe:
        return await http_get(container, probe["httpGet"], pod_ip, timeout_seconds)
    if "tcpSocket" in probe:
        host = probe["tcpSocket"].get("host") or pod_ip
        port = resolve_port(container, probe["tcpSocket"]["port"])
        try:
            async with asyncio.timeout(timeout_seconds):
                _, writer = await asyncio.open_connection(host, port)
        except (TimeoutError, OSError) as error:
            return ProbeResult(False, f"dial tcp {host}:{port}: {error or 'i/o timeout'}")
        writer.close()
        return ProbeResult(True)
    if "exec" in probe:
        try:
            code, output = await execute(probe["exec"]["command"], timeout_seconds)
        except TimeoutError:
            return ProbeResult(False, f"command timed out after {timeout_seconds:g}s")
        except OSError as error:
            return ProbeResult(False, str(error))
        return ProbeResult(code == 0, output.strip())
    raise ProbeUnsupported("only httpGet, tcpSocket and exec probes are supported by this node")


async def watch_probe(
    container: JsonObject,
    probe: JsonObject,
    pod_ip: str,
    execute: ExecProbe,
    on_result: Callable[[bool, ProbeResult], bool],
) -> None:
    """Probe periodically; `on_result(passed, result)` hears each crossing of a threshold and each failure.

    It is told whether the threshold in the result's direction has been reached, and returns True to end.
    """
    await asyncio.sleep(float(probe.get("initialDelaySeconds") or 0))
    period_seconds = float(probe.get("periodSeconds") or 10)
    thresholds = {True: int(probe.get("successThreshold") or 1), False: int(probe.get("failureThreshold") or 3)}
    streak_ok, streak = True, 0
    while True:
        result = await run_probe(container, probe, pod_ip, execute)
        streak = streak + 1 if result.ok == streak_ok else 1
        streak_ok = result.ok
        if on_result(streak >= thresholds[result.ok], result):
            return
        await asyncio.sleep(period_seconds)
