"""Keeps the adapters that vLLM has equal to those that are wanted."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Protocol

from trireme.protocol.serving import AdapterSource, LoadedAdapter, ModelSource, RefusedAdapter
from trireme_serving.cache import Files, NodeCache
from trireme_serving.checks import Adapter, check_adapter
from trireme_serving.errors import EngineRefused, Unusable
from trireme_serving.safetensors_file import Shapes
from trireme_storage.fetch import Corrupt
from trireme_storage.store import StoreError

log = logging.getLogger(__name__)

RETRY_SECONDS = 15.0
"""Between two tries to have an adapter that could not be had."""


class AdapterServer(Protocol):
    """What is asked of vLLM."""

    async def models(self) -> dict[str, str]: ...

    async def load_adapter(self, name: str, directory: Path) -> None: ...

    async def unload_adapter(self, name: str) -> None: ...


class AdapterKeeper:
    """Fetches, checks, loads and unloads adapters. What is loaded is asked of vLLM and never remembered."""

    def __init__(self, engine: AdapterServer, cache: NodeCache, model: ModelSource, shapes: Shapes, rank: int) -> None:
        self._engine = engine
        self._cache = cache
        self._model = model
        self._shapes = shapes
        self._rank = rank
        self._here: dict[AdapterSource, tuple[Files, Adapter]] = {}
        self._refused: dict[AdapterSource, tuple[float, RefusedAdapter]] = {}

    @property
    def refused(self) -> list[RefusedAdapter]:
        """Those of the last round that cannot be loaded, with the reasons."""
        return [refusal for _, refusal in self._refused.values()]

    @property
    def directories(self) -> set[Path]:
        """Folders of the cache that are in use."""
        return {files.directory for files, _ in self._here.values()}

    async def round(self, wanted: list[AdapterSource], served_name: str) -> list[LoadedAdapter]:
        """Load what is missing, unload what is not wanted; what vLLM lists then. Raises EngineRefused."""
        listed = await self._engine.models()
        roots = set(listed.values())
        self._refused = {source: known for source, known in self._refused.items() if source in wanted}
        self._here = {s: known for s, known in self._here.items() if s in wanted or str(known[1].directory) in roots}
        keep = {source.name for source in wanted}
        for name in [name for name in listed if name != served_name and name not in keep]:
            log.info("unloading adapter %s", name)
            await self._engine.unload_adapter(name)
        for source in wanted:
            await self._have(source, listed)
        return self._described(await self._engine.models(), served_name)

    async def _have(self, source: AdapterSource, listed: dict[str, str]) -> None:
        """One adapter; until it can be loaded, what had its name before goes on answering."""
        tried = self._refused.get(source)
        if tried is not None and time.monotonic() - tried[0] < RETRY_SECONDS:
            return
        try:
            if source not in self._here:
                self._here[source] = await asyncio.to_thread(self._bring, source)
            directory = self._here[source][1].directory
            if listed.get(source.name) != str(directory):
                log.info("loading adapter %s from %s", source.name, source.uri)
                await self._engine.load_adapter(source.name, directory)
        except (Unusable, Corrupt, StoreError, OSError, ValueError) as error:
            self._refuse(source, getattr(error, "reason", type(error).__name__), str(error))
        except EngineRefused as error:
            self._refuse(source, "AdapterLoadFailed", str(error))
        else:
            self._refused.pop(source, None)

    def _bring(self, source: AdapterSource) -> tuple[Files, Adapter]:
        files = self._cache.bring(ModelSource(uri=source.uri, digest=source.digest))
        found = check_adapter(files.directory, source, self._model, files.base, self._shapes, self._rank)
        return files, found

    def _refuse(self, source: AdapterSource, reason: str, message: str) -> None:
        if source not in self._refused:
            log.warning("adapter %s: %s: %s", source.name, reason, message)
        refusal = RefusedAdapter(name=source.name, uri=source.uri, reason=reason, message=message[:1000])
        self._refused[source] = (time.monotonic(), refusal)

    def _described(self, listed: dict[str, str], served_name: str) -> list[LoadedAdapter]:
        known = {(s.name, str(adapter.directory)): (s, files) for s, (files, adapter) in self._here.items()}
        found = []
        for name, root in sorted(listed.items()):
            if name == served_name:
                continue
            if (entry := known.get((name, root))) is None:
                found.append(LoadedAdapter(name=name, uri=root))
                continue
            source, files = entry
            found.append(LoadedAdapter(name=name, id=source.id, uri=source.uri, digest=files.source.digest or ""))
        return found
