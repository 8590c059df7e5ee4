"""Where documents come from: files on mounted volumes or objects in the store, chosen by patterns."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import IO, Literal, cast

from trireme.checkpoints import parse_s3_uri
from trireme.protocol import StoreConfig
from trireme_storage.store import MIB, ObjectStore, StoreError
from trireme_trainer.data.errors import DataEmpty, DataNotFound, DataUnreadable

PIECE_CHARACTERS = MIB
"""Longer documents are tokenised in pieces cut at line ends."""
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class SourceConfig:
    """One origin of documents."""

    uri: str
    weight: float = 1.0
    format: Literal["auto", "text", "jsonl"] = "auto"
    text_field: str = "text"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class SourceFile:
    """One file of a source; `identity` is the same for the same file reached through two sources."""

    identity: str
    name: str
    bytes: int
    location: Path
    """Where it lies, or will lie once fetched."""
    key: str | None = None
    """Its key in the object store, for s3:// sources."""


class Document:
    """One document in pieces of at most about PIECE_CHARACTERS, which are read as they are asked for, once."""

    def __init__(self, first: str, rest: Iterator[str]) -> None:
        head = hashlib.sha256(first.encode()).digest()
        self.digest = int.from_bytes(head[:8], "big")
        """First eight bytes of the SHA-256 of the first piece: decides whether it is held out."""
        self.pieces = chain((first,), rest)

    @classmethod
    def of(cls, text: IO[str], file: SourceFile) -> Document | None:
        """The document in a stream of a file, None when that is empty."""
        pieces = _pieces(text, file)
        first = next(pieces, None)
        return None if first is None else cls(first, pieces)


@lru_cache(maxsize=1024)
def glob_to_regex(pattern: str) -> re.Pattern[str]:
    """A path pattern as a regular expression: ** over folders, * and ? within one."""
    result, position = "", 0
    while position < len(pattern):
        if pattern.startswith("**/", position):
            result, position = result + "(?:.*/)?", position + 3
        elif pattern.startswith("**", position):
            result, position = result + ".*", position + 2
        else:
            character = pattern[position]
            result += {"*": "[^/]*", "?": "[^/]"}.get(character, re.escape(character))
            position += 1
    return re.compile(result + r"\Z")


def may_lie_under(pattern: str, folder: str) -> bool:
    """Whether a path that matches the pattern can lie below a folder."""
    components = pattern.split("/")
    for position, name in enumerate(folder.split("/")):
        if position >= len(components) - 1 and "**" not in components[-1]:
            return False
        if "**" in components[position]:
            return True
        if not glob_to_regex(components[position]).match(name):
            return False
    return True


class Source:
    """The files of one source, and their documents."""

    def __init__(self, config: SourceConfig, store: StoreConfig, cache: Path) -> None:
        self.config = config
        self._store_config = store
        self._cache = cache
        self._include = [glob_to_regex(p) for p in config.include]
        self._exclude = [glob_to_regex(p) for p in config.exclude]
        self._store: ObjectStore | None = None

    def _wanted(self, name: str) -> bool:
        taken = not self._include or any(p.match(name) for p in self._include)
        return taken and not any(p.match(name) for p in self._exclude)

    def files(self) -> list[SourceFile]:
        """The chosen files in name order. Raises DataNotFound, StoreError."""
        found = self._stored_files() if self.config.uri.startswith("s3://") else self._local_files()
        chosen = [f for f in found if self._wanted(f.name)]
        if not chosen:
            patterns = f"include {list(self.config.include)}, exclude {list(self.config.exclude)}"
            raise DataNotFound(f"{self.config.uri}: no file there matches {patterns}")
        return sorted(chosen, key=lambda f: f.name)

    def _local_files(self) -> list[SourceFile]:
        root = local_root(self.config.uri)
        try:
            if root.is_file():
                return [SourceFile(str(root.resolve()), root.name, root.stat().st_size, root)]
            if not root.is_dir():
                raise DataNotFound(f"{root} does not exist")
            return [
                SourceFile(os.path.realpath(root / name), name, (root / name).stat().st_size, root / name)
                for name in self._walk(root)
            ]
        except PermissionError as error:
            raise DataUnreadable(f"{error.filename}: permission denied") from error

    def _walk(self, root: Path) -> Iterator[str]:
        """Names of the wanted files under a folder; folders that can hold none are not entered."""
        for folder, folders, names in os.walk(root):
            inside = os.path.relpath(folder, root)
            prefix = "" if inside == "." else inside.replace(os.sep, "/") + "/"
            folders[:] = [f for f in folders if self._worth_entering(f"{prefix}{f}")]
            yield from (prefix + name for name in names if self._wanted(prefix + name))

    def _worth_entering(self, folder: str) -> bool:
        # "x/**" matches "x/": nothing below such a folder can be wanted.
        if any(p.match(f"{folder}/") for p in self._exclude):
            return False
        return not self.config.include or any(may_lie_under(p, folder) for p in self.config.include)

    def _stored_files(self) -> list[SourceFile]:
        bucket, prefix = parse_s3_uri(self.config.uri)
        self._store = self._store or ObjectStore(self._store_config, uri=self.config.uri)
        found = []
        for entry in self._store.entries(prefix):
            if entry.key == prefix:
                name = entry.key.rsplit("/", 1)[-1]
            elif not prefix or entry.key.startswith(prefix + "/"):
                name = entry.key[len(prefix) :].lstrip("/")
            else:
                continue
            place = self._cache / hashlib.sha256(f"{bucket}/{entry.key}".encode()).hexdigest()
            found.append(SourceFile(f"s3://{bucket}/{entry.key}", name, entry.bytes, place, entry.key))
        return found

    def documents(self, file: SourceFile) -> Iterator[Document]:
        """The documents of one file; the pieces of one are there until the next is asked for.

        Raises DataUnreadable, StoreError; so does reading the pieces, of which no more than one is in memory.
        """
        with readable(file), open_text(self.local(file), file.name) as text:
            if self._is_jsonl(file.name):
                yield from self._json_lines(text, file)
            elif (document := Document.of(text, file)) is not None:
                yield document

    def local(self, file: SourceFile) -> Path:
        """Where the file's bytes are on this node, fetched if need be. Raises StoreError."""
        if file.key is not None and not file.location.exists():
            assert self._store is not None
            partial = file.location.with_suffix(".part")
            self._store.download(file.key, partial)
            partial.rename(file.location)
        return file.location

    def _is_jsonl(self, name: str) -> bool:
        if self.config.format == "auto":
            return name.removesuffix(".gz").endswith(".jsonl")
        return self.config.format == "jsonl"

    def _json_lines(self, text: IO[str], file: SourceFile) -> Iterator[Document]:
        for number, line in enumerate(text, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)[self.config.text_field]
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                message = f"{file.identity} line {number}: no JSON object with field {self.config.text_field!r}"
                raise DataUnreadable(message) from error
            if not isinstance(value, str):
                message = f"{file.identity} line {number}: field {self.config.text_field!r} is no text"
                raise DataUnreadable(message)
            # JSON can spell half a character, which no encoding can; like undecodable bytes it becomes U+FFFD.
            value = _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", value)
            if value.strip() and (document := Document.of(io.StringIO(value), file)) is not None:
                yield document


def open_text(path: Path, name: str) -> IO[str]:
    """A text stream over a plain or gzip file; undecodable bytes become U+FFFD. Raises DataUnreadable for binaries."""
    opened = gzip.open(path, "rb") if name.endswith(".gz") else path.open("rb")  # noqa: SIM115 the caller closes it
    raw = cast(IO[bytes], opened)
    if b"\0" in raw.read(8192):
        raw.close()
        raise DataUnreadable(f"{path}: holds NUL bytes and so is no text; leave it out with exclude")
    raw.seek(0)
    return io.TextIOWrapper(raw, encoding="utf-8", errors="replace")


@contextmanager
def readable(file: SourceFile) -> Iterator[None]:
    """Raise DataUnreadable, which names the file, for what its disk or its compression raises."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnreadable(f"{file.identity}: {error}") from error


def _pieces(text: IO[str], file: SourceFile) -> Iterator[str]:
    # Whoever asks for a piece is outside of documents(), and errors of the disk are raised there.
    with readable(file):
        while piece := text.read(PIECE_CHARACTERS):
            if len(piece) == PIECE_CHARACTERS:
                piece += text.readline()
            yield piece


def training_files(
    sources: Sequence[Source], held_out: Sequence[Source]
) -> tuple[list[list[SourceFile]], list[list[SourceFile]]]:
    """Files of the training and of the validation sources; a file of the latter is left out of the former.

    Raises DataNotFound, and DataEmpty when every file of a training source is held out.
    """
    validation = [source.files() for source in held_out]
    excluded = {f.identity for files in validation for f in files}
    training = []
    for source in sources:
        files = [f for f in source.files() if f.identity not in excluded]
        if not files:
            raise DataEmpty(f"{source.config.uri}: every file is a validation file")
        training.append(files)
    return training, validation


__all__ = ["Document", "Source", "SourceConfig", "SourceFile", "StoreError", "glob_to_regex", "training_files"]


def local_root(uri: str) -> Path:
    """The file or folder that a source on this computer means."""
    if uri == "python://stdlib":
        return Path(sysconfig.get_path("stdlib"))
    return Path(uri.removeprefix("file://"))
