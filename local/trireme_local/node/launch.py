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
from trireme_local.node.namespaces import MountNamespaces
from trireme_local.node.rootfs import ContainerRoot, Mount, visible_trees
from trireme_local.node.volumes import PUBLISHED

SERVICE_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
# Where Python keeps compiled modules in a namespace: beside its sources it cannot.
BYTECODE_PATH = "/var/cache/python-bytecode"
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
    """Host path of each volume, by its name."""
    namespaces: MountNamespaces | None
    """What gives the pod's containers file systems of their own, None where paths are rewritten instead."""
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
    """Working directory on the host; in a mount namespace it is the one that `root` names."""
    rewriting: MountTable
    termination_path: Path
    image: Image
    root: ContainerRoot | None
    """What the container's mount namespace shows, None where paths are rewritten instead."""


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
        mounts = await self._mounts(termination_path)
        # In a namespace the mounts are there; without one every path that names them is rewritten.
        rewriting = MountTable({} if sandbox.namespaces else {mount.path: mount.host for mount in mounts})
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
        env = {name: rewriting.rewrite(value) for name, value in env.items()}
        return Launch(
            arguments=[rewriting.rewrite(part) for part in program],
            env={**env, **self._told_paths(rewriting)},
            directory=self._working_directory(rewriting),
            rewriting=rewriting,
            termination_path=termination_path,
            image=image,
            root=self._container_root(image, mounts) if sandbox.namespaces else None,
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
            **self._places(image),
            "LANG": "C.UTF-8",
            "HOSTNAME": sandbox.facts.pod["spec"].get("hostname") or sandbox.facts.pod["metadata"]["name"],
            **image.env,
            **service_variables(linked),
        }

    def _places(self, image: Image) -> dict[str, str]:
        """Variables that name directories: those of an image, or, without a namespace, of the host."""
        if not self.sandbox.namespaces:
            return {"HOME": str(self.directory / "root"), "TMPDIR": str(self.sandbox.scratch)}
        cached = image.python and self.sandbox.node.bytecode is not None
        return {"HOME": "/root", **({"PYTHONPYCACHEPREFIX": BYTECODE_PATH} if cached else {})}

    def _told_paths(self, rewriting: MountTable) -> dict[str, str]:
        """Where the program leaves its termination message and finds its service account, after rewriting."""
        paths = {"TRIREME_TERMINATION_LOG": self._termination_message_path()}
        mounted = {str(mount["mountPath"]).rstrip("/") for mount in self.spec.get("volumeMounts") or []}
        if SERVICE_ACCOUNT_PATH in mounted:
            paths["TRIREME_SERVICEACCOUNT_DIR"] = SERVICE_ACCOUNT_PATH
        return {name: rewriting.rewrite(path) for name, path in paths.items()}

    async def _mounts(self, termination_path: Path) -> list[Mount]:
        """Every volume mount, and the file of the termination message. Raises `StartRefused`."""
        found: list[Mount] = []
        kinds = {volume["name"]: set(volume) for volume in self.sandbox.facts.pod["spec"].get("volumes") or []}
        for mount in self.spec.get("volumeMounts") or []:
            volume = self.sandbox.volumes.get(mount["name"])
            if volume is None:
                raise StartRefused("CreateContainerConfigError", f'cannot find volume "{mount["name"]}" to mount')
            if not self.sandbox.namespaces and mount["mountPath"].rstrip("/") == TMP_PATH:
                if "emptyDir" not in kinds[mount["name"]]:
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
            read_only = bool(mount.get("readOnly")) or bool(PUBLISHED & kinds[mount["name"]])
            found.append(Mount(mount["mountPath"], host, read_only))
        return [*found, Mount(self._termination_message_path(), termination_path)]

    def _termination_message_path(self) -> str:
        return str(self.spec.get("terminationMessagePath") or DEFAULT_TERMINATION_PATH)

    def _container_root(self, image: Image, mounts: list[Mount]) -> ContainerRoot:
        bytecode = self.sandbox.node.bytecode
        if image.python and bytecode is not None:
            mounts = [*mounts, Mount(BYTECODE_PATH, bytecode)]
        return ContainerRoot(
            directory=self.directory / "root",
            trees=tuple(visible_trees(image.trees)),
            mounts=tuple(mounts),
            working_directory=self.spec.get("workingDir") or "/",
            read_only=bool((self.spec.get("securityContext") or {}).get("readOnlyRootFilesystem")),
        )

    async def _literal_environment(self) -> dict[str, str]:
        namespace = self.sandbox.facts.pod["metadata"]["namespace"]
        try:
            return await container_environment(self.spec, self.sandbox.facts, self.sandbox.node.lookup(namespace), {})
        except ConfigError as error:
            raise StartRefused("CreateContainerConfigError", str(error)) from error

    def _working_directory(self, rewriting: MountTable) -> Path:
        """The container's own root directory, or workingDir below it or in a mount."""
        if self.sandbox.namespaces:
            self.directory.mkdir(parents=True, exist_ok=True)
            return self.directory
        root = self.directory / "root"
        wanted = self.spec.get("workingDir") or ""
        path = rewriting.host_path(wanted) or root / wanted.lstrip("/")
        path.mkdir(parents=True, exist_ok=True)
        root.mkdir(parents=True, exist_ok=True)
        return path
