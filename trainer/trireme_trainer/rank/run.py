"""A rank's part in its attempt, whatever it trains: votes between steps, saves, a verified restore, reports."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from trireme.checkpoints import Manifest
from trireme.checkpoints.manifest import AttemptStart
from trireme.protocol import Progress, ResumePoint, Section, Settings
from trireme.protocol.base import WireModel
from trireme_storage.fetch import Corrupt, verify_local
from trireme_trainer.agent.messages import (
    ExportedEvent,
    NewSettings,
    ProgressEvent,
    SavedEvent,
    SaveFailedEvent,
)
from trireme_trainer.disk import is_full
from trireme_trainer.engines.interface import NonFiniteState
from trireme_trainer.metrics.memory import peak_memory_bytes
from trireme_trainer.metrics.parts import StepTiming
from trireme_trainer.rank.errors import NaNLoss, RestoreFailed

log = logging.getLogger(__name__)


class Channel(Protocol):
    """What a run needs of the rank's channel to its agent."""

    @property
    def drain_requested(self) -> bool: ...
    @property
    def checkpoint_busy(self) -> bool: ...
    def send(self, message: WireModel) -> None: ...
    def alive(self) -> None: ...
    def enter(self, section: Section, step: int) -> None: ...
    def expect_upload(self) -> None: ...
    def take_settings(self) -> NewSettings | None: ...


class Ranks(Protocol):
    """All ranks of the attempt, as far as a run needs them."""

    def agree(self, flag: int) -> int:
        """Largest flag given by any rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""


class Wish(IntEnum):
    """What a rank asks of all ranks between two steps; the largest wins."""

    GO_ON = 0
    SAVE = 1
    DRAIN = 2


class Outcome(IntEnum):
    """How a run ended."""

    FINISHED = 0
    DRAINED = 1


@dataclass(frozen=True)
class Place:
    """Where this rank stands and writes."""

    rank: int
    local_rank: int
    local_world_size: int
    world_size: int
    save_directory: Path
    resume_from: ResumePoint | None = None
    """As recorded for this attempt."""


class Run:
    """One rank's part in one attempt."""

    def __init__(
        self,
        channel: Channel,
        place: Place,
        ranks: Ranks,
        settings: Settings,
        device: Literal["cpu", "cuda"],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.channel = channel
        self.place = place
        self.clock = clock
        self.saved_step: int | None = None
        """Step of the newest checkpoint that was written or restored, or tried to be."""
        self._ranks = ranks
        self._settings = settings
        self._device = device
        self._saved_at = clock()

    # -- between two steps

    def begin(self) -> None:
        """Training starts now: the interval of saves counts from here."""
        self._saved_at = self.clock()

    def wish(self, step: int) -> Wish:
        """What this rank wants when `step` steps are complete."""
        if (changed := self.channel.take_settings()) is not None:
            self._settings = changed.settings
        if self.channel.drain_requested:
            return Wish.DRAIN
        return Wish.SAVE if self.place.rank == 0 and self._save_due(step) else Wish.GO_ON

    def _save_due(self, step: int) -> bool:
        """Rank 0 decides for all; a save waits until the one before is in the store."""
        if not self.unsaved(step) or self.channel.checkpoint_busy:
            return False
        every_steps, every_seconds = (
            self._settings.checkpoint_interval_steps,
            self._settings.checkpoint_interval_seconds,
        )
        if every_steps and step // every_steps > (self.saved_step or 0) // every_steps:
            return True
        return bool(every_seconds) and self.clock() - self._saved_at >= (every_seconds or 0)

    def unsaved(self, step: int) -> bool:
        """Whether steps were made since the last save."""
        return step > (self.saved_step or 0)

    def report(
        self,
        progress: Progress,
        completed_at: float,
        timing: StepTiming | None = None,
        skew_seconds: float | None = None,
    ) -> None:
        """Tell the agent the facts of a step; `completed_at` in seconds since the epoch, 0 for none."""
        self.channel.send(
            ProgressEvent(
                progress=progress,
                completed_at=completed_at,
                peak_memory_bytes=peak_memory_bytes(self._device),
                part_seconds=timing.parts if timing is not None else {},
                busy_seconds=timing.busy if timing is not None else None,
                skew_seconds=skew_seconds,
            )
        )

    # -- checkpoints

    def save(
        self, step: int, tokens: int, write: Callable[[Path], Sequence[str]], manifest: Callable[[], dict[str, Any]]
    ) -> None:
        """Have this rank write its part to its node's disk and hand it to the agent. Collective.

        `write` puts files into a directory and answers their names; it may raise OSError (the save failed, training
        goes on) or NonFiniteState. Raises NaNLoss.
        Ranks with little to write stay until all have written: in the next step's collectives they would wait under
        the limit of a step, and a long save would look like a hang.
        """
        self.channel.enter(Section.SAVE, step)
        self._write_part(step, tokens, write, manifest)
        self._ranks.barrier()
        # Also after a failed write: all must agree on what is left to be saved.
        self.saved_step, self._saved_at = step, self.clock()

    def _write_part(
        self, step: int, tokens: int, write: Callable[[Path], Sequence[str]], manifest: Callable[[], dict[str, Any]]
    ) -> None:
        began = self.clock()
        directory = self.place.save_directory / f"step-{step}"
        try:
            files = write(directory)
        except NonFiniteState as error:
            raise NaNLoss(f"checkpoint of step {step}: {error}") from error
        except OSError as error:
            reason = "DiskFull" if is_full(error) else "LocalDiskFailed"
            log.warning("save of step %d failed: %s: %s", step, reason, error)
            message = str(error)[:1024]
            self.channel.send(SaveFailedEvent(step=step, reason=reason, message=message, directory=str(directory)))
            return
        self.channel.expect_upload()
        self.channel.send(
            SavedEvent(
                step=step,
                tokens=tokens,
                directory=str(directory),
                files=list(files),
                stall_seconds=self.clock() - began,
                manifest=manifest() if self.place.rank == 0 else None,
            )
        )

    def began(self) -> dict[str, Any]:
        """Where this attempt started, for manifests."""
        return AttemptStart(resume_from=self.place.resume_from).model_dump(mode="json", by_alias=True)

    def verified(self, directory: Path) -> Manifest:
        """The manifest of the checkpoint to restore, once every rank has found its share of the files right.

        Raises RestoreFailed on every rank when one finds fault: no rank reads a byte before all files of all nodes
        are known to be good. Collective.
        """
        self.channel.enter(Section.RESTORE, 0)
        manifest = Manifest.decode(directory.with_suffix(".manifest.json").read_bytes())
        fault: Corrupt | None = None
        try:
            verify_local(directory, manifest.files[self.place.local_rank :: self.place.local_world_size])
        except Corrupt as error:
            fault = error
        if self._ranks.agree(int(fault is not None)):
            if fault is not None:  # the next attempt must not find the same bytes
                shutil.rmtree(directory, ignore_errors=True)
            raise RestoreFailed(str(fault) if fault else "another rank found a file that does not verify") from fault
        return manifest

    def restored(self, step: int, state: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """Take note of what was restored, unless it is not what it must be. Raises RestoreFailed."""
        for name, value in expected.items():
            if state.get(name) != value:
                raise RestoreFailed(f"checkpoint of step {step}: {name} is {state.get(name)}, expected {value}")
        self.saved_step = step

    # -- the end

    def export(self, step: int, write: Callable[[Path], None], manifest: Callable[[], dict[str, Any]]) -> None:
        """Have the model written to this node's disk and hand it to the agent. Collective."""
        self.channel.enter(Section.EXPORT, step)
        directory = self.place.save_directory / "export"
        write(directory)
        if self.place.rank == 0:
            self.channel.send(ExportedEvent(directory=str(directory), manifest=manifest()))
        self._ranks.barrier()
        self.channel.enter(Section.DONE, step)
