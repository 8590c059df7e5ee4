"""Which command an image stands for: there is no container runtime, so a table takes the registry's place."""

from __future__ import annotations

import fnmatch
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trireme_local.node.rootfs import interpreter_trees

DEFAULT_TABLE = Path(__file__).with_name("images.yaml")
HOST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageTableError(ValueError):
    """The image table cannot be read."""


class ImageNotFound(LookupError):
    """No entry of the table matches the image, or what the entry needs is not on this computer."""


@dataclass(frozen=True)
class Image:
    """What a container of this image starts with."""

    name: str
    command: tuple[str, ...] = ()
    path: str = HOST_PATH
    env: dict[str, str] = field(default_factory=dict)
    python: bool = False
    trees: tuple[Path, ...] = ()
    """What of this computer a container of the image sees beside the system's own directories."""


def normalize(image: str) -> str:
    """The image as the table names it: no docker.io/library/, always a tag or a digest."""
    for prefix in ("docker.io/", "index.docker.io/", "library/"):
        image = image.removeprefix(prefix)
    if "@" in image or ":" in image.rsplit("/", 1)[-1]:
        return image
    return f"{image}:latest"


def _programs(image: str, venv: Path, setup: str) -> Path:
    """The folder of a virtual environment's programs. Raises `ImageNotFound` where there is none."""
    programs = venv / "bin"
    if not (programs / "python").exists():
        hint = f": run `{setup}`" if setup else ""
        raise ImageNotFound(f"image {image!r} needs the virtual environment {venv}, which is not there{hint}")
    return programs


def _image(name: str, entry: dict[str, Any]) -> Image:
    """The image that a table's entry describes. Raises `ImageNotFound` where its virtual environment is missing."""
    command = tuple(str(part) for part in entry.get("command", ()))
    # A program or script that the table names by its path is part of the image.
    named = [Path(part) for part in command if Path(part).is_absolute()]
    path, trees = HOST_PATH, [*(Path(tree) for tree in entry.get("paths") or ()), *named]
    if entry.get("python"):
        path = f"{Path(sys.executable).parent}:{HOST_PATH}"
        trees += interpreter_trees()
    if venv := entry.get("venv"):
        prefix = Path(sys.prefix).parent / venv
        path = f"{_programs(name, prefix, str(entry.get('setup', '')))}:{HOST_PATH}"
        trees += interpreter_trees(prefix)
    return Image(
        name=name,
        command=command,
        path=path,
        env={str(key): str(value) for key, value in (entry.get("env") or {}).items()},
        python=bool(entry.get("python") or venv),
        trees=tuple(trees),
    )


class ImageTable:
    """An ordered list of patterns; the first that matches an image's normalized name decides."""

    def __init__(self, entries: list[dict[str, Any]]) -> None:
        self._entries = entries

    @classmethod
    def load(cls, path: Path | None = None) -> ImageTable:
        """Read the table at `path`, followed by the default one. Raises `ImageTableError`."""
        entries: list[dict[str, Any]] = []
        for source in [path, DEFAULT_TABLE] if path else [DEFAULT_TABLE]:
            try:
                content = yaml.safe_load(source.read_text())
                found = content["images"]
                for entry in found:
                    if not isinstance(entry["match"], str) or not isinstance(entry.get("command", []), list):
                        raise TypeError(f"entry {entry!r}: match is a string, command a list")
            except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
                raise ImageTableError(f"image table {source}: {error}") from error
            entries += found
        return cls(entries)

    def find(self, image: str) -> Image:
        """The entry for `image`. Raises `ImageNotFound`."""
        name = normalize(image)
        for entry in self._entries:
            if fnmatch.fnmatchcase(name, entry["match"]):
                return _image(name, entry)
        raise ImageNotFound(f"image {name!r} is in no entry of the image table")
