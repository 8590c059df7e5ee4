"""Volumes of a pod, made as directories and files on the host."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from trireme_local.kube import JsonObject
from trireme_local.node.environment import ConfigError, Lookup, PodFacts, config_entries
from trireme_local.node.mounts import TMP_PATH, MountTable
from trireme_local.quantities import parse_quantity

DEFAULT_MODE = 0o644
# Volumes whose files the node writes; a container never does.
PUBLISHED = {"configMap", "secret", "downwardAPI", "projected"}

# (audience or None, seconds) -> token of the pod's service account.
TokenSource = Callable[[str | None, int], Awaitable[str]]


class VolumeError(Exception):
    """A volume cannot be set up yet, or never; the message is the FailedMount event's."""


Files = dict[str, tuple[bytes, int]]
"""Content and mode of each file, by its path in the volume."""

DATA_LINK = "..data"


def publish(volume: Path, files: Files) -> None:
    """Make these the volume's files, all at once, through a link that is swapped, as the kubelet does.

    A volume that has them already is left alone.
    """
    data = volume / DATA_LINK
    if data.is_symlink() and _files_below(data) == files:
        return
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=volume))
    fresh.chmod(0o755)
    for name, (content, mode) in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    _point(data, fresh.name)
    shown = {Path(name).parts[0] for name in files}
    for name in shown:
        _point(volume / name, f"{DATA_LINK}/{name}")
    for entry in volume.iterdir():
        if entry.is_symlink() and entry.name not in {DATA_LINK, *shown}:
            entry.unlink()
        elif entry.name.startswith("..") and not entry.is_symlink() and entry != fresh:
            shutil.rmtree(entry)


def _files_below(data: Path) -> Files:
    root = data.resolve()
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) for path in files}


def _point(link: Path, target: str) -> None:
    """Make or move a symbolic link in one step."""
    fresh = link.with_name(f"..{link.name}.new")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.replace(link)


def _inside(relative: str) -> str:
    """`relative`, in its plainest form. Raises `VolumeError` when it leaves the volume."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise VolumeError(f"path {relative!r} must be relative and without '..'")
    return str(Path(relative))


class VolumeBuilder:
    """Makes and refreshes the volumes of one pod under `directory`."""

    def __init__(
        self,
        directory: Path,
        facts: PodFacts,
        lookup: Lookup,
        token: TokenSource,
        *,
        rewrites: bool = True,
        memory: Path | None = None,
    ) -> None:
        """`rewrites`: mount paths in the files of ConfigMaps become the host's. `memory`: for medium `Memory`."""
        self._directory = directory
        self._facts = facts
        self._lookup = lookup
        self._token = token
        self._memory = memory
        self._mounts = MountTable(self._mounted() if rewrites else {})

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
            if mount["name"] in hosts and not mount.get("subPathExpr") and mount["mountPath"].rstrip("/") != TMP_PATH
        }

    async def build(self) -> dict[str, Path]:
        """Set up (or refresh) every volume; name -> host path. Raises `VolumeError`."""
        return {
            volume["name"]: await self._build_one(volume) for volume in self._facts.pod["spec"].get("volumes") or []
        }

    async def _build_one(self, volume: JsonObject) -> Path:
        name = volume["name"]
        path: Path = self._parent(volume) / name
        try:
            if "hostPath" in volume:
                path = _host_path(volume["hostPath"])
            else:
                path.mkdir(parents=True, exist_ok=True)
            if "configMap" in volume:
                publish(path, await self._config("ConfigMap", volume["configMap"]))
            elif "secret" in volume:
                source = {"name": volume["secret"]["secretName"], **volume["secret"]}
                publish(path, await self._config("Secret", source))
            elif "downwardAPI" in volume:
                publish(path, self._downward(volume["downwardAPI"]))
            elif "projected" in volume:
                publish(path, await self._projected(volume["projected"]))
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

    def _parent(self, volume: JsonObject) -> Path:
        """Where the volume's directory lies: in memory, if that is asked for and has room for its limit."""
        empty = volume.get("emptyDir") or {}
        if self._memory is None or empty.get("medium") != "Memory":
            return self._directory
        self._memory.mkdir(parents=True, exist_ok=True)
        roomy = shutil.disk_usage(self._memory).total >= parse_quantity(empty.get("sizeLimit") or 0)
        return self._memory if roomy else self._directory

    async def _config(self, kind: str, source: JsonObject) -> Files:
        """Files of a ConfigMap or Secret, all its keys or the `items` picked."""
        name = source["name"]
        obj = await self._lookup(kind, name)
        if obj is None:
            if source.get("optional"):
                return {}
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
        files: Files = {}
        for item in items:
            if item["key"] not in entries:
                if source.get("optional"):
                    continue
                raise ConfigError(f"{kind.lower()} {name!r} has no key {item['key']!r}")
            files[_inside(item["path"])] = (entries[item["key"]], item.get("mode", mode))
        return files

    def _downward(self, source: JsonObject) -> Files:
        mode = source.get("defaultMode", DEFAULT_MODE)
        files: Files = {}
        for item in source.get("items") or []:
            if "fieldRef" in item:
                value = self._facts.field(item["fieldRef"]["fieldPath"])
            else:
                value = self._facts.resource_field(item["resourceFieldRef"], None)
            files[_inside(item["path"])] = (value.encode(), item.get("mode", mode))
        return files

    async def _projected(self, projected: JsonObject) -> Files:
        mode = projected.get("defaultMode", DEFAULT_MODE)
        files: Files = {}
        for source in projected.get("sources") or []:
            for kind, key in (("ConfigMap", "configMap"), ("Secret", "secret")):
                if key in source:
                    files |= await self._config(kind, {"defaultMode": mode, **source[key]})
            if "downwardAPI" in source:
                files |= self._downward({"defaultMode": mode, **source["downwardAPI"]})
            if "serviceAccountToken" in source:
                wanted = source["serviceAccountToken"]
                token = await self._token(wanted.get("audience"), wanted.get("expirationSeconds", 3600))
                files[_inside(wanted["path"])] = (token.encode(), 0o600)
            unknown = set(source) - {"configMap", "secret", "downwardAPI", "serviceAccountToken"}
            if unknown:
                raise VolumeError(f"projected source {sorted(unknown)} is not supported by this node")
        return files


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
