"""Brings the exported model to the store, its manifest last."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

from trireme.checkpoints import JobKeys, Manifest, ShardFile
from trireme.protocol import ModelRef
from trireme_storage.store import ObjectStore, StoreError, hash_file
from trireme_trainer.agent.messages import ExportedEvent

log = logging.getLogger(__name__)
EXPORT_RETRY_SECONDS = 5.0
EXPORT_TRIES = 5
"""Tries to store the model that fail for another reason than the store's absence, before the attempt fails."""


class ModelNotStored(Exception):
    """The model cannot be stored, and waiting does not cure it."""


class ModelUpload:
    """The upload of one attempt's exported model."""

    def __init__(self, event: ExportedEvent, store: ObjectStore, keys: JobKeys, attempt: int) -> None:
        self._event = event
        self._store = store
        self._keys = keys
        self._attempt = attempt
        self._stored: dict[Path, ShardFile] = {}
        """What is in the store already; a try that follows another goes on from there."""

    async def run(self, threads: Executor, wanted: Callable[[], bool]) -> ModelRef | None:
        """Where the model is; None when it is not wanted any more. Raises ModelNotStored.

        Retries for as long as the store is away; what waiting does not cure is given up after a few tries.
        """
        tries = 0
        while wanted():
            try:
                return await asyncio.get_running_loop().run_in_executor(threads, self._put)
            except Exception as error:
                tries = 0 if isinstance(error, StoreError) and error.retryable else tries + 1
                log.warning("export: %s: %s; trying again", type(error).__name__, error)
                if tries >= EXPORT_TRIES:
                    message = f"the exported model cannot be stored: {type(error).__name__}: {error}"
                    raise ModelNotStored(message) from error
                await asyncio.sleep(EXPORT_RETRY_SECONDS)
        return None

    def _put(self) -> ModelRef:
        root, prefix = Path(self._event.directory), self._keys.model(self._attempt)
        paths = sorted(p for p in root.rglob("*") if p.is_file())
        for path in (p for p in paths if p not in self._stored):
            size, sha256 = hash_file(path)
            file = ShardFile(path=path.relative_to(root).as_posix(), bytes=size, sha256=sha256)
            self._store.upload(path, prefix + file.path)
            self._stored[path] = file
        files = [self._stored[path] for path in paths]
        manifest = Manifest.model_validate(
            {**self._event.manifest, "jobUid": self._keys.uid, "attempt": self._attempt, "files": files}
        )
        self._store.put(prefix + "manifest.json", manifest.encode())
        return ModelRef(uri=self._keys.to_uri(prefix), digest=manifest.digest)
