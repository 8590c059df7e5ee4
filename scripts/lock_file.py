"""Lock files as `make lock` writes them: pinned packages, each with the hashes of its files."""

import re
from dataclasses import dataclass
from pathlib import Path

_ENTRY = re.compile(r"^(?P<name>[a-z0-9][\w.-]*)==(?P<version>[^\s;]+)(?: \\\n {4}--hash=\S+)*$", re.M)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Pin:
    """One package of a lock."""

    name: str
    version: str
    hashes: frozenset[str]  # SHA-256 of its files; none where any build of the version fits
    text: str  # as it stands in the lock

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def read_lock(path: Path) -> dict[str, Pin]:
    """The pins of a lock by name. Raises ValueError for a line that is neither pin, hash nor comment."""
    text = path.read_text()
    pins = {
        m["name"]: Pin(m["name"], m["version"], frozenset(_HASH.findall(m[0])), m[0]) for m in _ENTRY.finditer(text)
    }
    read = sum(len(pin.text.splitlines()) for pin in pins.values())
    written = sum(not line.lstrip().startswith("#") for line in text.splitlines() if line.strip())
    if read != written:
        raise ValueError(f"{path}: {written} lines, of which {read} are of pinned packages")
    return pins
