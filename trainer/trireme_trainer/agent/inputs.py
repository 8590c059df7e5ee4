"""RUN, first part: the node's verified copies of data set and checkpoint, while the ranks start."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trireme.checkpoints import JobKeys
from trireme.protocol import StoreConfig, Target
from trireme_storage.fetch import Corrupt
from trireme_storage.store import ObjectStore, StoreError
from trireme_trainer.agent.messages import Inputs
from trireme_trainer.agent.programs import StartingWeights
from trireme_trainer.checkpoint.fetch import NodeCache
from trireme_trainer.checkpoint.inventory import ResumeRecord, resume_key

log = logging.getLogger(__name__)
RETRY_SECONDS = 3.0
BUSY_SECONDS = 120.0
"""A try that failed after longer than this was moving files: with the store away it fails sooner."""


class InputsLost(Exception):
    """The inputs recorded for this attempt cannot be brought to this node.

    `lasting`: because of what the store holds; another try would find the same.
    """

    def __init__(self, message: str, *, lasting: bool = False) -> None:
        super().__init__(message)
        self.lasting = lasting


@dataclass
class InputsFetcher:
    """Brings one attempt's inputs to this node; runs in a thread."""

    store: ObjectStore
    keys: JobKeys
    cache: NodeCache
    target: Target
    slot: int
    config: StoreConfig
    weights: Mapping[str, StartingWeights] = field(default_factory=dict)
    always_from_weights: bool = False

    def __post_init__(self) -> None:
        self._cancelled = threading.Event()
        self.moved_at = time.monotonic()

    def cancel(self) -> None:
        """Stop at the next chunk."""
        self._cancelled.set()

    def _stop(self) -> bool:
        """Whether to stop; asked for at every chunk that comes in or is hashed, which shows that some do."""
        self.moved_at = time.monotonic()
        return self._cancelled.is_set()

    def run(self) -> Inputs:
        """Fetch with retries while the store is away. Raises InputsLost."""
        failing_since: float | None = None
        while True:
            began = time.monotonic()
            try:
                return self._fetch()
            except Corrupt as error:
                raise InputsLost(f"an input does not verify: {error}", lasting=True) from error
            except StoreError as error:
                now, patience = time.monotonic(), self.target.settings.start_timeout_seconds
                # A try that lasted was not idle: what it brought in stays, and the next one goes on from there.
                if now - began > BUSY_SECONDS:
                    failing_since = None
                failing_since = failing_since or now
                if self._cancelled.is_set() or not error.retryable or now - failing_since > patience:
                    raise InputsLost(f"{error.reason}: {error.message}", lasting=not error.retryable) from error
                log.warning("inputs: %s: %s; trying again", error.reason, error.message)
                self._cancelled.wait(RETRY_SECONDS)
                self.moved_at = time.monotonic()

    def _fetch(self) -> Inputs:
        target = self.target
        if target.dataset is None:
            raise InputsLost("the target of phase run names no data set")
        if self.slot == 0:
            # Before any rank of this attempt can save: from here on, what older attempts commit is not adopted.
            record = ResumeRecord(attempt=target.attempt, resume_from=target.resume_from)
            self.store.put(resume_key(self.keys, target.attempt), record.to_json().encode())
        dataset = self.cache.fetch_dataset(self.store, target.dataset, self._stop)
        checkpoint = None
        if target.resume_from is not None:
            place, manifest = self.cache.fetch_checkpoint(self.store, target.resume_from, self._stop)
            (place.with_suffix(".manifest.json")).write_bytes(manifest.encode())
            checkpoint = str(place)
        return Inputs(
            dataset_directory=str(dataset),
            checkpoint_directory=checkpoint,
            weights=self._fetch_weights() if checkpoint is None or self.always_from_weights else {},
        )

    def _fetch_weights(self) -> dict[str, str]:
        """Folders of the weights that the job names."""
        return {name: str(self._folder(starting)) for name, starting in self.weights.items()}

    def _folder(self, starting: StartingWeights) -> Path:
        if starting.folder is None:
            store = ObjectStore(self.config, uri=starting.uri)
            return self.cache.fetch_starting_weights(store, starting.uri, self._stop, digest=starting.digest)
        if not starting.folder.is_dir():
            raise StoreError(
                "StartFromNotFound",
                f"{starting.folder} is no folder on this node: is the volume mounted?",
                retryable=True,
            )
        return starting.folder


def free_port() -> int:
    """A TCP port free on all addresses at this moment: torch's rendezvous listens on all of them."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])
