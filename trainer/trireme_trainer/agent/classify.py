"""Why ranks ended: the first cause among what one pod saw."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from trireme.protocol.messages import DRAINED_EXIT_CODE, FENCED_EXIT_CODE, NAN_EXIT_CODE, RESTORE_EXIT_CODE, Failure
from trireme.protocol.messages import FailureKind as Kind
from trireme_trainer.agent.messages import FailedEvent
from trireme_trainer.symptoms import tells_of_aborted_collective, tells_of_broken_device

# What a cause is worth as an explanation of the others' ends, best first.
_RANKING = [
    Kind.NAN_LOSS,
    Kind.DEVICE,
    Kind.LOCAL_DISK,
    Kind.EXCEPTION,
    Kind.RESTORE,
    Kind.OOM_KILLED,
    Kind.HANG,
    Kind.KILLED,
    Kind.CRASHED,
    Kind.EXIT,
    Kind.FENCED,
    Kind.VICTIM,
]
_OF_EXIT_CODE = {NAN_EXIT_CODE: Kind.NAN_LOSS, RESTORE_EXIT_CODE: Kind.RESTORE, FENCED_EXIT_CODE: Kind.FENCED}
OOM_EXIT_CODE = 137
_FROM_OUTSIDE = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


@dataclass(frozen=True)
class RankEnd:
    """How one rank ended by itself."""

    rank: int
    step: int
    return_code: int
    """As of subprocess: negative is a signal."""
    at: float
    """Monotonic seconds."""
    failed: FailedEvent | None = None
    """Its own record, where it left one."""
    last_words: str = ""
    """The end of its output, where it crashed."""

    @property
    def clean(self) -> bool:
        """Whether it ended as asked."""
        return self.return_code in (0, DRAINED_EXIT_CODE)


def classify(end: RankEnd, *, oom_kills: int) -> Failure:
    """The failure that one rank's end is. `oom_kills`: the cgroup's count since the attempt began."""
    code, number = end.return_code, None
    if code < 0:
        number, code = -code, 128 - code
    record = end.failed
    killed = number == signal.SIGKILL or end.return_code == OOM_EXIT_CODE
    if killed and oom_kills > 0:
        kind, message = Kind.OOM_KILLED, f"killed for memory ({oom_kills} OOM kills in this container)"
    elif record is not None:
        kind, message = record.kind, record.message
    elif number is not None:
        kind, message = _of_signal(signal.Signals(number), end.last_words)
    else:
        kind = _OF_EXIT_CODE.get(end.return_code, Kind.EXIT)
        message = f"exit code {end.return_code} without an exception record"
    return Failure(
        kind=kind,
        rank=end.rank,
        step=end.step if record is None else record.step,
        exit_code=code if number is None else None,
        signal=number,
        exception=record.exception if record else None,
        message=message[:2048],
        traceback_tail=record.traceback_tail[-4096:] if record else "",
    )


def is_crash(return_code: int) -> bool:
    """Whether a process ended by a signal that comes from what it did itself."""
    return return_code < 0 and -return_code not in _FROM_OUTSIDE


def _of_signal(number: signal.Signals, last_words: str) -> tuple[Kind, str]:
    if number in _FROM_OUTSIDE:
        return Kind.KILLED, f"killed by {number.name}"
    said = last_words.strip().rsplit("\n", 1)[-1]
    message = f"crashed with {number.name}" + (f": {said}" if said else "")
    if tells_of_broken_device(last_words):
        return Kind.DEVICE, message
    if number == signal.SIGABRT and tells_of_aborted_collective(last_words):
        return Kind.VICTIM, message
    return Kind.CRASHED, message


def first_cause(ends: list[RankEnd], *, oom_kills: int) -> tuple[Failure, float] | None:
    """The failure that explains the others, and when it happened; None when every end was clean."""
    failures = [(classify(end, oom_kills=oom_kills), end.at) for end in ends if not end.clean]
    if not failures:
        return None
    return min(failures, key=lambda f: (_RANKING.index(f[0].kind), f[1]))
