"""The node's HTTPS endpoint, the kubelet's as far as an API server needs it to serve `kubectl logs`."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Protocol

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from trireme_local.kube import JsonObject
from trireme_local.node.logs import LogOptions, LogSource, read_log

DEFAULT_PORT = 10250


class PodSource(Protocol):
    """What the endpoint asks about the node's pods."""

    def log_source(self, namespace: str, pod: str, container: str) -> LogSource | None:
        """The container's logs, None when the node has no such container."""

    def pod_objects(self) -> list[JsonObject]:
        """The node's pods."""


def serving_certificate(directory: Path, name: str, address: str) -> ssl.SSLContext:
    """A TLS context with a self-signed certificate for the node, made once (API servers do not verify kubelets)."""
    certificate_path, key_path = directory / "kubelet.crt", directory / "kubelet.key"
    if not certificate_path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{name}")])
        now = datetime.datetime.now(datetime.UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=3650))
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address(address))]),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate_path, key_path)
    return context


class KubeletServer:
    """Serves /containerLogs, /pods and /healthz. It listens on the node's loopback address and only reads."""

    def __init__(self, pods: PodSource) -> None:
        self._pods = pods

    async def start(self, address: str, port: int, context: ssl.SSLContext) -> tuple[web.AppRunner, int]:
        """Listen; returns the runner (to clean up) and the port. Raises OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/pods", self._list_pods)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await runner.setup()
        site = web.TCPSite(runner, address, port, ssl_context=context)
        await site.start()
        return runner, int(runner.addresses[0][1])

    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _list_pods(self, request: web.Request) -> web.Response:
        return web.json_response({"apiVersion": "v1", "kind": "PodList", "items": self._pods.pod_objects()})

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        names = request.match_info
        source = self._pods.log_source(names["namespace"], names["pod"], names["container"])
        if source is None:
            text = f"container {names['container']!r} of pod {names['namespace']}/{names['pod']} is not on this node"
            return web.Response(status=404, text=text)
        try:
            options = LogOptions.from_query(dict(request.query))
        except ValueError as error:
            return web.Response(status=400, text=str(error))
        previous = request.query.get("previous") in ("true", "1")
        restart = source.record.restart_count - int(previous)
        path = source.path(restart)
        if not path.exists():
            what = "previous terminated container" if previous else "container"
            text = f'{what} "{names["container"]}" in pod "{names["pod"]}" not found'
            if "waiting" in source.record.state and not previous:
                reason = source.record.state["waiting"].get("reason")
                text = f'container "{names["container"]}" in pod "{names["pod"]}" is waiting to start: {reason}'
            return web.Response(status=400, text=text)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)

        def running() -> bool:
            return source.record.restart_count == restart and source.is_running()

        async for chunk in read_log(path, options, running):
            await response.write(chunk)
        await response.write_eof()
        return response
