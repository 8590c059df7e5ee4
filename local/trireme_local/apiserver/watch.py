"""List and watch."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from . import errors, tables
from .request import Accepted
from .resource import Resource
from .selectors import Selector
from .store import Change, Entry, ExpiredVersionError, Obj, Store, encode

BOOKMARK_SECONDS = 30.0
_SNAPSHOT_SECONDS = 300.0
_MAX_SNAPSHOTS = 200
_MAX_QUEUED = 20_000
_DEFAULT_TIMEOUT_SECONDS = (1800, 3600)
_INITIAL_END = "k8s.io/initial-events-end"


@dataclass(frozen=True)
class ListOptions:
    """metav1.ListOptions of a list or watch."""

    selector: Selector
    limit: int = 0
    continue_token: str = ""
    version: str = ""
    match: str = ""
    timeout_seconds: int | None = None
    bookmarks: bool = False
    send_initial: bool = False
    include: str = "Metadata"  # of Tables


@dataclass
class _Snapshot:
    entries: list[Entry]
    version: int
    expires: float


class Lister:
    """Lists with consistent pages: the rest of a paged list is kept, in its state at the first page."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._snapshots: OrderedDict[str, _Snapshot] = OrderedDict()

    def list(self, resource: Resource, namespace: str, options: ListOptions) -> tuple[list[Entry], Obj]:
        """Matching entries and the ListMeta. Raises ApiError 400, 410 or 504."""
        if options.continue_token:
            snapshot, start = self._resume(options)
        else:
            self._check_version(options)
            entries = self._store.list(resource.storage, namespace)
            if not options.selector.everything:
                entries = [entry for entry in entries if options.selector.matches(resource.to_served(entry.obj))]
            snapshot, start = _Snapshot(entries, self._store.version, time.monotonic() + _SNAPSHOT_SECONDS), 0
        meta: Obj = {"resourceVersion": str(snapshot.version)}
        end = start + options.limit if options.limit else len(snapshot.entries)
        page = snapshot.entries[start:end]
        if end < len(snapshot.entries):
            meta["continue"] = self._keep(snapshot, end, options.continue_token)
            if options.selector.everything:
                meta["remainingItemCount"] = len(snapshot.entries) - end
        return page, meta

    def _check_version(self, options: ListOptions) -> None:
        if options.match and options.match not in ("Exact", "NotOlderThan"):
            raise errors.bad_request(f"resourceVersionMatch: Unsupported value: {options.match!r}")
        if options.match and not options.version:
            raise errors.bad_request("resourceVersionMatch is forbidden unless resourceVersion is provided")
        if not options.version:
            return
        if not options.version.isdigit():
            raise errors.bad_request(f'resourceVersion: Invalid value: "{options.version}"')
        asked, current = int(options.version), self._store.version
        if asked > current:
            raise errors.too_large_version(asked, current)
        if options.match == "Exact" and asked != current:
            raise errors.expired(f"The provided resource version {asked} is no longer kept (now {current}).")

    def _keep(self, snapshot: _Snapshot, start: int, token: str) -> str:
        key = json.loads(base64.urlsafe_b64decode(token))["key"] if token else secrets.token_urlsafe(12)
        self._snapshots[key] = snapshot
        self._snapshots.move_to_end(key)
        while len(self._snapshots) > _MAX_SNAPSHOTS:
            self._snapshots.popitem(last=False)
        return base64.urlsafe_b64encode(json.dumps({"key": key, "start": start}).encode()).decode()

    def _resume(self, options: ListOptions) -> tuple[_Snapshot, int]:
        if options.version not in ("", "0"):
            raise errors.bad_request("specifying resource version is not allowed when using continue")
        try:
            token = json.loads(base64.urlsafe_b64decode(options.continue_token))
            key, start = str(token["key"]), int(token["start"])
        except (ValueError, KeyError, TypeError):
            raise errors.bad_request("continue key is not valid") from None
        snapshot = self._snapshots.get(key)
        if snapshot is None or time.monotonic() > snapshot.expires:
            raise errors.expired(
                "The provided continue parameter is too old to display a consistent list result. "
                "You must start a new list without the continue parameter."
            )
        return snapshot, start


class Watcher:
    """One watch request; `events` yields encoded lines."""

    def __init__(
        self, store: Store, resource: Resource, namespace: str, options: ListOptions, accepted: Accepted
    ) -> None:
        self._store, self._resource, self._namespace = store, resource, namespace
        self._options, self._accepted = options, accepted
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._sent_columns = False

    def _line(self, kind: str, obj: Obj) -> bytes:
        return encode({"type": kind, "object": obj}) + b"\n"

    def _event(self, kind: str, entry: Entry) -> bytes:
        served = self._resource.to_served(entry.obj)
        if self._accepted.kind == "Table":
            api_version = f"{self._accepted.group}/{self._accepted.version}"
            meta = {"resourceVersion": str(entry.version)}
            shown = tables.table(
                self._resource, [served], meta, self._options.include, not self._sent_columns, api_version
            )
            self._sent_columns = True
            return self._line(kind, shown)
        if self._accepted.kind.startswith("PartialObjectMetadata"):
            api_version = f"{self._accepted.group}/{self._accepted.version}"
            return self._line(kind, tables.partial_metadata(served, api_version))
        raw = entry.raw if served is entry.obj else encode(served)
        return b'{"type":"%s","object":%s}\n' % (kind.encode(), raw)

    def _change(self, change: Change) -> bytes | None:
        """What this watcher sees of a write: a selector turns entering into ADDED and leaving into DELETED."""
        if self._namespace and change.entry.namespace != self._namespace:
            return None
        selector, resource = self._options.selector, self._resource
        if selector.everything:
            return self._event(change.kind, change.entry)
        before = change.previous is not None and selector.matches(resource.to_served(change.previous.obj))
        after = change.kind != "DELETED" and selector.matches(resource.to_served(change.entry.obj))
        if after:
            return self._event("MODIFIED" if before else "ADDED", change.entry)
        if before:
            return self._event("DELETED", change.entry)
        return None

    def _on_change(self, change: Change) -> None:
        line = self._change(change)
        if line is not None:
            self._queue.put_nowait(line)
            if self._queue.qsize() > _MAX_QUEUED:
                self._queue.put_nowait(None)  # a consumer this slow has to start again

    def _bookmark(self, initial_end: bool = False) -> bytes:
        meta: Obj = {"resourceVersion": str(self._store.version)}
        if not self._resource.custom:
            meta["creationTimestamp"] = None
        if initial_end:
            meta["annotations"] = {_INITIAL_END: "true"}
        obj = {"kind": self._resource.kind, "apiVersion": self._resource.api_version, "metadata": meta}
        if self._accepted.kind:
            api_version = f"{self._accepted.group}/{self._accepted.version}"
            obj = (
                tables.partial_metadata(obj, api_version)
                if self._accepted.kind != "Table"
                else {"kind": "Table", "apiVersion": api_version, "metadata": meta, "columnDefinitions": [], "rows": []}
            )
        return self._line("BOOKMARK", obj)

    def check(self) -> None:
        """Refuse a bad request before the stream begins. Raises ApiError 400 or 504."""
        options, asked = self._options, self._options.version
        if options.send_initial and options.match != "NotOlderThan":
            raise errors.bad_request("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan")
        if asked and not asked.isdigit():
            raise errors.bad_request(f'resourceVersion: Invalid value: "{asked}"')
        if asked and int(asked) > self._store.version:
            raise errors.too_large_version(int(asked), self._store.version)

    def _start(self) -> list[bytes]:
        """Lines of the initial state or of the missed history. Raises ExpiredVersionError."""
        options, asked = self._options, self._options.version
        if options.send_initial or asked in ("", "0"):
            entries = self._store.list(self._resource.storage, self._namespace)
            found = [entry for entry in entries if options.selector.matches(self._resource.to_served(entry.obj))]
            lines = [self._event("ADDED", entry) for entry in found]
            if options.send_initial and options.bookmarks:
                lines.append(self._bookmark(initial_end=True))
            return lines
        changes = self._store.changes_since(self._resource.storage, int(asked))
        return [line for line in map(self._change, changes) if line is not None]

    async def events(self, on_close: Callable[[Callable[[], None]], None]) -> AsyncGenerator[bytes]:
        """Encoded events until the timeout; `on_close` receives a function that ends the stream early."""
        limits = _DEFAULT_TIMEOUT_SECONDS
        seconds = self._options.timeout_seconds or random.randint(*limits)
        deadline = time.monotonic() + seconds
        try:
            first = self._start()
        except ExpiredVersionError as error:
            yield self._line("ERROR", errors.expired(str(error)).status())
            return
        unsubscribe = self._store.subscribe(self._resource.storage, self._on_change)
        on_close(lambda: self._queue.put_nowait(None))
        try:
            if first:
                yield b"".join(first)
            next_bookmark = time.monotonic() + BOOKMARK_SECONDS
            while (left := deadline - time.monotonic()) > 0:
                lines: list[bytes | None] = []
                # Waiting with no time left takes nothing from a queue that has something: that must come first.
                if self._queue.empty():
                    wait = min(left, max(0.0, next_bookmark - time.monotonic())) if self._options.bookmarks else left
                    try:
                        async with asyncio.timeout(wait):
                            lines.append(await self._queue.get())
                    except TimeoutError:
                        # A bookmark must not overtake an event that arrived with the timeout.
                        if self._options.bookmarks and self._queue.empty():
                            yield self._bookmark()
                            next_bookmark = time.monotonic() + BOOKMARK_SECONDS
                        continue
                while not self._queue.empty():
                    lines.append(self._queue.get_nowait())
                ended = None in lines
                body = b"".join(item for item in lines if item is not None)
                if body:
                    yield body
                if ended:
                    return
        finally:
            unsubscribe()
