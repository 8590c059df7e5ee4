"""What a container is started with: its image, environment, mounts, arguments and directory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from trireme_local.kube import NETWORK_ERRORS, ApiException, JsonObject
from trireme_local.node.context import NodeContext
from trireme_local.node.environment import (
    ConfigError,
    PodFacts,
    container_environment,
    expand,
    linked_services,
    service_variables,
)
from trireme_local.node.images import HOST_PATH, Image, ImageNotFound
from trireme_local.node.mounts import TMP_PATH, MountTable

SERVICE_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
DEFAULT_TERMINATION_PATH = "/dev/termination-log"


class StartRefused(Exception):
    """The container cannot be started now; `reason` is its waiting reason."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass
class Sandbox:
    """What the containers of one pod share."""

    node: NodeContext
    facts: PodFacts
    directory: Path
    scratch: Path
    volumes: dict[str, Path]
    changed: Callable[[], None]
    event: Callable[[str, str, str], None]
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def uid(self) -> str:
        """The pod's uid."""
        return str(self.facts.pod["metadata"]["uid"])


@dataclass(frozen=True)
class Launch:
    """Everything needed to start the container's first process."""

    arguments: list[str]
    env: dict[str, str]
    directory: Path
    mounts: MountTable
    termination_path: Path
    image: Image


async def prepare(sandbox: Sandbox, spec: JsonObject, directory: Path) -> Launch:
    """Find the container's image and resolve its configuration. Raises `StartRefused`."""
    return await _Preparation(sandbox, spec, directory).prepare()


class _Preparation:
    """The steps of `prepare`."""

    def __init__(self, sandbox: Sandbox, spec: JsonObject, directory: Path) -> None:
        self.sandbox = sandbox
        self.spec = spec
        self.directory = directory

    async def prepare(self) -> Launch:
        """Find the image and resolve configuration. Raises `StartRefused`."""
        node, sandbox = self.sandbox.node, self.sandbox
        try:
            image = node.images.find(self.spec["image"])
        except ImageNotFound as error:
            raise StartRefused("ErrImagePull", str(error)) from error
        for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
            if "grpc" in (self.spec.get(probe) or {}):
                raise StartRefused("CreateContainerError", f"{probe}: grpc probes are not supported by this node")
        termination_path = self.directory / "termination-log"
        mounts = MountTable(await self._mounts(termination_path))
        namespace = sandbox.facts.pod["metadata"]["namespace"]
        initial = self._initial_environment(image)
        try:
            env = await container_environment(self.spec, sandbox.facts, node.lookup(namespace), initial)
        except ConfigError as error:
            raise StartRefused("CreateContainerConfigError", str(error)) from error
        except (ApiException, *NETWORK_ERRORS) as error:
            raise StartRefused("CreateContainerConfigError", f"the API server cannot be asked: {error!r}") from error
        command = [expand(part, env) for part in self.spec.get("command") or []]
        arguments = [expand(part, env) for part in self.spec.get("args") or []]
        program = (command or list(image.command)) + arguments
        if not program:
            raise StartRefused("CreateContainerError", f"no command specified and image {image.name!r} has none")
        rewritten = {name: mounts.rewrite(value) for name, value in env.items()}
        rewritten["TRIREME_TERMINATION_LOG"] = str(termination_path)
        if account := mounts.host_path(SERVICE_ACCOUNT_PATH):
            rewritten["TRIREME_SERVICEACCOUNT_DIR"] = str(account)
        return Launch(
            arguments=[mounts.rewrite(part) for part in program],
            env=rewritten,
            directory=self._working_directory(mounts),
            mounts=mounts,
            termination_path=termination_path,
            image=image,
        )

    def _initial_environment(self, image: Image) -> dict[str, str]:
        """What a container finds before its own env: the image's, and the addresses of Services and the API server.

        Raises `StartRefused` while the node does not know the Services yet.
        """
        sandbox = self.sandbox
        host, _, port = sandbox.node.client.host.partition("://")[2].partition(":")
        services = sandbox.node.services
        if not services.synced.is_set():
            text = "services have not yet been read at least once, cannot construct envvars"
            raise StartRefused("CreateContainerConfigError", text)
        linked = linked_services(sandbox.facts.pod, services.store.values(), host, int(port.rstrip("/") or "443"))
        return {
            "PATH": image.path or HOST_PATH,
            "HOME": str(self.directory / "root"),
            "TMPDIR": str(sandbox.scratch),
            "LANG": "C.UTF-8",
            "HOSTNAME": sandbox.facts.pod["spec"].get("hostname") or sandbox.facts.pod["metadata"]["name"],
            **image.env,
            **service_variables(linked),
        }

    async def _mounts(self, termination_path: Path) -> dict[str, Path]:
        """Container path -> host path of every volume mount. Raises `StartRefused`."""
        found: dict[str, Path] = {}
        empty = {v["name"] for v in self.sandbox.facts.pod["spec"].get("volumes") or [] if "emptyDir" in v}
        for mount in self.spec.get("volumeMounts") or []:
            volume = self.sandbox.volumes.get(mount["name"])
            if volume is None:
                raise StartRefused("CreateContainerConfigError", f'cannot find volume "{mount["name"]}" to mount')
            if mount["mountPath"].rstrip("/") == TMP_PATH:
                if mount["name"] not in empty:
                    text = f'volume "{mount["name"]}": this node can mount nothing but an emptyDir at {TMP_PATH}'
                    raise StartRefused("CreateContainerConfigError", text)
                continue
            relative = mount.get("subPath") or ""
            if expression := mount.get("subPathExpr"):
                relative = expand(expression, await self._literal_environment())
            if Path(relative).is_absolute() or ".." in Path(relative).parts:
                raise StartRefused("CreateContainerConfigError", f"subPath {relative!r} must stay in its volume")
            host = volume / relative if relative else volume
            if relative and not host.exists():
                host.mkdir(parents=True)
            found[mount["mountPath"]] = host
        found[self.spec.get("terminationMessagePath") or DEFAULT_TERMINATION_PATH] = termination_path
        return found

    async def _literal_environment(self) -> dict[str, str]:
        namespace = self.sandbox.facts.pod["metadata"]["namespace"]
        try:
            return await container_environment(self.spec, self.sandbox.facts, self.sandbox.node.lookup(namespace), {})
        except ConfigError as error:
            raise StartRefused("CreateContainerConfigError", str(error)) from error

    def _working_directory(self, mounts: MountTable) -> Path:
        """The container's own root directory, or workingDir below it or in a mount."""
        root = self.directory / "root"
        wanted = self.spec.get("workingDir") or ""
        path = mounts.host_path(wanted) or root / wanted.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        return path
