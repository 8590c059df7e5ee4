"""Volumes of a pod, made as directories and files on the host."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from trireme_local.kube import JsonObject
from trireme_local.node.environment import ConfigError, Lookup, PodFacts, config_entries
from trireme_local.node.mounts import MountTable

DEFAULT_MODE = 0o644

# (audience or None, seconds) -> token of the pod's service account.
TokenSource = Callable[[str | None, int], Awaitable[str]]


class VolumeError(Exception):
    """A volume cannot be set up yet, or never; the message is the FailedMount event's."""


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Replace the file's content atomically. An unchanged file is left alone."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_bytes(content)
    fresh.chmod(mode)
    fresh.replace(path)


def _inside(directory: Path, relative: str) -> Path:
    """`directory`/`relative`. Raises `VolumeError` when that leaves the directory."""
    path = directory / relative
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise VolumeError(f"path {relative!r} must be relative and without '..'")
    return path


class VolumeBuilder:
    """Makes and refreshes the volumes of one pod under `directory`."""

    def __init__(self, directory: Path, facts: PodFacts, lookup: Lookup, token: TokenSource) -> None:
        self._directory = directory
        self._facts = facts
        self._lookup = lookup
        self._token = token
        self._mounts = MountTable(self._mounted())

    def _mounted(self) -> dict[str, Path]:
        """Host path of every mount path in the pod's containers."""
        spec = self._facts.pod["spec"]
        hosts = {
            volume["name"]: Path(volume["hostPath"]["path"])
            if "hostPath" in volume
            else self._directory / volume["name"]
            for volume in spec.get("volumes") or []
        }
        return {
            mount["mountPath"]: hosts[mount["name"]] / (mount.get("subPath") or "")
            for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
            for mount in container.get("volumeMounts") or []
            if mount["name"] in hosts and not mount.get("subPathExpr")
        }

    async def build(self) -> dict[str, Path]:
        """Set up (or refresh) every volume; name -> host path. Raises `VolumeError`."""
        return {
            volume["name"]: await self._build_one(volume) for volume in self._facts.pod["spec"].get("volumes") or []
        }

    async def _build_one(self, volume: JsonObject) -> Path:
        name = volume["name"]
        path: Path = self._directory / name
        try:
            if "hostPath" in volume:
                path = _host_path(volume["hostPath"])
            else:
                path.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                await self._config(path, "ConfigMap", volume["configMap"])
            elif "secret" in volume:
                source = {"name": volume["secret"]["secretName"], **volume["secret"]}
                await self._config(path, "Secret", source)
            elif "downwardAPI" in volume:
                self._downward(path, volume["downwardAPI"])
            elif "projected" in volume:
                await self._projected(path, volume["projected"])
            elif "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                raise VolumeError(f"persistentVolumeClaim {claim!r}: this node has no storage driver; use hostPath")
            elif "emptyDir" not in volume and not {"hostPath"} & set(volume) and set(volume) != {"name"}:
                kinds = sorted(set(volume) - {"name"})
                raise VolumeError(f"volume type {kinds} is not supported by this node")
        except (ConfigError, VolumeError) as error:
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from error
        except OSError as error:
            raise VolumeError(f'MountVolume.SetUp failed for volume "{name}" : {error}') from error
        return path

    async def _config(self, path: Path, kind: str, source: JsonObject) -> None:
        """Files of a ConfigMap or Secret, all its keys or the `items` picked."""
        name = source["name"]
        obj = await self._lookup(kind, name)
        if obj is None:
            if source.get("optional"):
                return
            raise ConfigError(f'{kind.lower()} "{name}" not found')
        entries = config_entries(kind, obj)
        if kind == "ConfigMap":
            # Files that tell a program where its mounts are must agree with its environment and arguments.
            for key, text in (obj.get("data") or {}).items():
                entries[key] = self._mounts.rewrite(text).encode()
        mode = source.get("defaultMode", DEFAULT_MODE)
        items = source.get("items")
        if items is None:
            items = [{"key": key, "path": key} for key in entries]
        for item in items:
            if item["key"] not in entries:
                if source.get("optional"):
                    continue
                raise ConfigError(f"{kind.lower()} {name!r} has no key {item['key']!r}")
            write_file(_inside(path, item["path"]), entries[item["key"]], item.get("mode", mode))

    def _downward(self, path: Path, source: JsonObject) -> None:
        mode = source.get("defaultMode", DEFAULT_MODE)
        for item in source.get("items") or []:
            if "fieldRef" in item:
                value = self._facts.field(item["fieldRef"]["fieldPath"])
            else:
                value = self._facts.resource_field(item["resourceFieldRef"], None)
            write_file(_inside(path, item["path"]), value.encode(), item.get("mode", mode))

    async def _projected(self, path: Path, projected: JsonObject) -> None:
        mode = projected.get("defaultMode", DEFAULT_MODE)
        for source in projected.get("sources") or []:
            for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
                if key in source:
                    await self._config(path, kind, {"defaultMode": mode, **source[key]})
            if "downwardAPI" in source:
                self._downward(path, {"defaultMode": mode, **source["downwardAPI"]})
            if "serviceAccountToken" in source:
                wanted = source["serviceAccountToken"]
                token = await self._token(wanted.get("audience"), wanted.get("expirationSeconds", 3600))
                write_file(_inside(path, wanted["path"]), token.encode(), 0o600)
            unknown = set(source) - {"configMap", "secret", "downwardAPI", "serviceAccountToken"}
            if unknown:
                raise VolumeError(f"projected source {sorted(unknown)} is not supported by this node")


def _host_path(source: JsonObject) -> Path:
    """The host's own path, checked or made as its `type` says."""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "DirectoryOrCreate":
        path.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        path.touch()
    tests = {
        "Directory": path.is_dir,
        "DirectoryOrCreate": path.is_dir,
        "File": path.is_file,
        "FileOrCreate": path.is_file,
    }
    if kind in tests and not tests[kind]():
        raise VolumeError(f"hostPath type check failed: {path} is not a {kind}")
    return path
