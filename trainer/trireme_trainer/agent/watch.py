"""Hangs: ranks that are silent or make no progress."""

from __future__ import annotations

from collections.abc import Sequence

from trireme.protocol import Failure, FailureKind, Section, Settings
from trireme_trainer.agent.ranks import RankProcess

_STARTING = (Section.START, Section.RESTORE)
# Validation, a save and the export take as long as the model is large: a heartbeat is all that can be asked of them.
_LONG = (Section.EVALUATE, Section.SAVE, Section.EXPORT)
OWN_STALL_SECONDS = 2.0


class HangWatch:
    """Looks at the ranks' heartbeats and sections."""

    def __init__(self, now: float) -> None:
        self._looked = now

    def look(self, ranks: Sequence[RankProcess], settings: Settings, now: float) -> Failure | None:
        """The hang that there is, if any.

        A rank stopped by a signal stalls its peers inside their collectives, and their step began before its last
        heartbeat. So that the culprit is named, silence counts after stepTimeoutSeconds and a stuck step a quarter
        later.
        """
        stalled, self._looked = now - self._looked > OWN_STALL_SECONDS, now
        if stalled:
            # This process was not scheduled: heartbeats may be waiting to be read.
            for rank in ranks:
                rank.beat_at = now
            return None
        for rank in ranks:
            silent = rank.silent_seconds(now)
            if rank.end is None and silent > settings.step_timeout_seconds:
                why = "; the process is stopped" if rank.is_stopped() else ""
                return _hang(rank, f"no heartbeat for {silent:.0f} s in section {rank.section}{why}")
        for rank in ranks:
            limit = settings.step_timeout_seconds * 1.25
            if rank.section in _STARTING:
                limit = settings.start_timeout_seconds
            elif rank.section in _LONG:
                limit = max(limit, settings.start_timeout_seconds)
            seconds = now - rank.entered_at
            if rank.end is None and seconds > limit:
                return _hang(rank, f"{seconds:.0f} s in section {rank.section} after step {rank.step}")
        return None


def _hang(rank: RankProcess, message: str) -> Failure:
    return Failure(kind=FailureKind.HANG, rank=rank.rank, step=rank.step, message=message)
