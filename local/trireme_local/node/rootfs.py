"""A container's root file system, said in the arguments of bubblewrap.

The root is a throw-away directory. Into it come, read-only, the trees of this computer that hold programs (there is no
image to unpack), a small /dev, and the container's volumes at their mount paths. A mount point cannot be made inside a
read-only tree: where a volume goes to such a place, the directories on the way to it are taken apart, each of their
entries bound by itself.
"""

from __future__ import annotations

import os
import posixpath
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Programs, libraries and configuration; what is missing here is left out.
SYSTEM_TREES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/opt", "/nix")
RESOLVER = Path("/etc/resolv.conf")
# Empty directories of every root; what has a mode is for everybody, like /tmp.
DIRECTORIES = {"tmp": 0o1777, "var/tmp": 0o1777, "root": 0o700, "run": 0o755, "dev/pts": 0o755}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "pts")
ACCELERATORS = ("nvidia*", "dri", "kfd", "infiniband")
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}
# What container runtimes give to /dev/shm where no volume is mounted there.
SHARED_MEMORY_BYTES = 64 << 20


@dataclass(frozen=True)
class Mount:
    """A file or directory of the host at a path of the container."""

    path: str
    host: Path
    read_only: bool = False

    @property
    def operation(self) -> str:
        """bwrap's option for it: what is bound otherwise opens no devices."""
        if self.host.is_relative_to("/dev") and not self.host.is_relative_to("/dev/shm"):
            return "--dev-bind"
        return "--ro-bind" if self.read_only else "--bind"


def plain_path(path: str) -> str:
    """A container's path, absolute and without `.`, `..` and doubled slashes."""
    return posixpath.normpath("/" + path.lstrip("/"))


def interpreter_trees(prefix: Path | None = None) -> tuple[Path, ...]:
    """What Python needs of this computer: the running interpreter, its packages, the virtual environment `prefix`."""
    # The first entry is where the program was started from, which is no part of the installation.
    packages = sys.path if sys.flags.safe_path else sys.path[1:]
    trees = [Path(sys.prefix), Path(sys.base_prefix), *(Path(entry) for entry in packages)]
    if prefix is not None:
        trees += [prefix, (prefix / "bin" / "python").resolve().parents[1]]
    return tuple(tree for tree in dict.fromkeys([*trees, *(tree.resolve() for tree in trees)]) if tree.is_dir())


def visible_trees(more: Iterable[Path]) -> list[Path]:
    """The trees of this computer that a container sees, none inside another."""
    trees = [Path(tree) for tree in SYSTEM_TREES if os.path.lexists(tree)]
    found: list[Path] = []
    for tree in [*trees, *sorted({*more, RESOLVER.resolve()}, key=lambda path: path.parts)]:
        inside = any(known.is_dir() and not known.is_symlink() and tree.is_relative_to(known) for known in found)
        if tree.exists() and tree != Path("/") and not inside:
            found.append(tree)
    return found


@dataclass(frozen=True)
class ContainerRoot:
    """What a container sees: its root in `directory`, trees of the host, and mounts; `read_only` spares the mounts."""

    directory: Path
    trees: tuple[Path, ...]
    mounts: tuple[Mount, ...] = ()
    working_directory: str = "/"
    read_only: bool = False

    def make(self) -> None:
        """Make the root directory afresh, and the places that mounts need. Raises OSError."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for name, mode in DIRECTORIES.items():
            path = self.directory / name
            path.mkdir(parents=True, exist_ok=True)
            path.chmod(mode)
        self._make_mount_points()

    def options(self) -> list[str]:
        """bwrap's options. Raises OSError when a directory that has to be taken apart cannot be read."""
        placed = self._placed()
        directory = self.start_directory
        wanted = [path for path in (*placed, directory) if not _within(path, placed)]
        steps = {"/": ["--bind", str(self.directory), "/"]} | _kernel_steps()
        for tree in self.trees:
            steps |= _tree_steps(tree, wanted, placed)
        for path, mount in placed.items():
            steps[path] = [mount.operation, str(mount.host), path]
        # Parents before what lies in them.
        words = [word for path in sorted(steps, key=_components) for word in steps[path]]
        words += ["--dir", directory, "--chdir", directory]
        return [*words, *(["--remount-ro", "/"] if self.read_only else [])]

    @property
    def start_directory(self) -> str:
        """The container's path of the directory in which its programs start."""
        return plain_path(self.working_directory)

    def _placed(self) -> dict[str, Mount]:
        """The mounts by their true paths: /bin/x is /usr/bin/x where /bin is a link."""
        placed = {}
        for mount in self.mounts:
            path = plain_path(mount.path)
            if any(Path(path).is_relative_to(tree) and Path(path) != tree for tree in self.trees):
                path = os.path.realpath(path)
            placed[path] = mount
        return placed

    def _make_mount_points(self) -> None:
        """Make, inside volumes that are mounted read-only, the places where something else is mounted."""
        placed = self._placed()
        hosts = {str(tree): tree for tree in self.trees} | {path: mount.host for path, mount in placed.items()}
        for outer, mount in placed.items():
            if not mount.read_only or not mount.host.is_dir():
                continue
            for path, host in hosts.items():
                if not path.startswith(f"{outer}/"):
                    continue
                place = mount.host / path[len(outer) + 1 :]
                (place if host.is_dir() else place.parent).mkdir(parents=True, exist_ok=True)
                if not host.is_dir():
                    place.touch()


def _within(path: str, placed: Mapping[str, Mount]) -> bool:
    """Whether the path lies inside one of the mounts."""
    return any(str(parent) in placed for parent in Path(path).parents)


def _components(path: str) -> tuple[str, ...]:
    return Path(path).parts


def _kernel_steps() -> dict[str, list[str]]:
    """/proc and /sys of this computer, since process ids are shared, and the devices of every container."""
    steps = {"/proc": ["--bind", "/proc", "/proc"], "/sys": ["--ro-bind", "/sys", "/sys"]}
    devices = [Path("/dev") / name for name in DEVICES]
    for pattern in ACCELERATORS:
        devices += sorted(Path("/dev").glob(pattern))
    for device in devices:
        if device.exists():
            steps[str(device)] = ["--dev-bind", str(device), str(device)]
    for name, target in LINKS.items():
        steps[f"/dev/{name}"] = ["--symlink", target, f"/dev/{name}"]
    size = ["--size", str(SHARED_MEMORY_BYTES), "--perms", "1777"]
    return steps | {"/dev/shm": [*size, "--tmpfs", "/dev/shm"]}


def _tree_steps(path: Path, wanted: Sequence[str], placed: Mapping[str, Mount]) -> dict[str, list[str]]:
    """Steps that show a tree of the host read-only, open where one of the `wanted` paths is missing in it."""
    if str(path) in placed:
        return {}
    if path.is_symlink():
        return {str(path): ["--symlink", str(path.readlink()), str(path)]}
    missing = [point for point in wanted if point.startswith(f"{path}/") and not Path(point).exists()]
    if not missing:
        return {str(path): ["--ro-bind", str(path), str(path)]}
    steps = {str(path): ["--dir", str(path)]}
    for entry in sorted(path.iterdir()):
        steps |= _tree_steps(entry, missing, placed)
    return steps
