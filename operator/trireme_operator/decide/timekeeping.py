"""Every second of a job in exactly one category.

Totals of closed intervals and one open interval are in status, so that total + (now - since) is now - creation at
every moment, across restarts of the operator. While ranks run, the agents' reported durations divide the interval;
what they have not reported yet stays in the open interval and belongs to whatever turns out to follow (to `down`, when
the ranks were lost).
"""

from collections.abc import Mapping

from trireme.resources.status import (
    Category,
    CategorySeconds,
    CauseSeconds,
    JobStatus,
    OpenInterval,
    RestartRecord,
    TimeStatus,
)
from trireme_operator.decide.model import to_time

_FIELD = {
    Category.CHECKPOINT_STALL: "checkpoint_stall",
}
AGENT_CATEGORIES = (
    Category.STARTUP,
    Category.RESTORE,
    Category.PRODUCTIVE,
    Category.CHECKPOINT_STALL,
    Category.RECOMPUTE,
)


def _field(category: Category) -> str:
    return _FIELD.get(category, category.value)


def add(seconds: CategorySeconds, category: Category, amount: float) -> CategorySeconds:
    """`seconds` with `amount` more in one category."""
    name = _field(category)
    return seconds.model_copy(update={name: getattr(seconds, name) + max(0.0, amount)})


def started(created: float) -> TimeStatus:
    """The account of a job that was just created."""
    return TimeStatus(open=OpenInterval(category=Category.QUEUED, since=to_time(created)))


def take_reported(time: TimeStatus, now: float, reported: Mapping[str, float]) -> TimeStatus:
    """Move what agents newly reported (cumulative seconds of this attempt) out of the open interval.

    Never moves more than the interval holds: durations that were measured elsewhere are scaled down to fit, and the
    rest is taken next time.
    """
    if time.open is None:
        return time
    fresh: dict[Category, float] = {}
    for category in AGENT_CATEGORIES:
        known = getattr(time.attempt_seconds, _field(category))
        fresh[category] = max(0.0, reported.get(category.value, 0.0) - known)
    wanted = sum(fresh.values())
    since = time.open.since.timestamp()
    if wanted <= 0.0 or now <= since:
        return time
    scale = min(1.0, (now - since) / wanted)
    seconds, attempt = time.seconds, time.attempt_seconds
    for category, amount in fresh.items():
        seconds, attempt = add(seconds, category, amount * scale), add(attempt, category, amount * scale)
    moved = OpenInterval(category=time.open.category, since=to_time(since + wanted * scale))
    return time.model_copy(update={"seconds": seconds, "open": moved, "attempt_seconds": attempt})


def switch(time: TimeStatus, now: float, category: Category, *, keep_open: bool = False) -> TimeStatus:
    """Open `category` from now on.

    With `keep_open` the interval that is open becomes part of it: its seconds were not accounted to anything yet.
    """
    if time.open is None or time.open.category == category:
        return time
    if keep_open:
        return time.model_copy(update={"open": OpenInterval(category=category, since=time.open.since)})
    elapsed = now - time.open.since.timestamp()
    return time.model_copy(
        update={
            "seconds": add(time.seconds, time.open.category, elapsed),
            "open": OpenInterval(category=category, since=to_time(max(now, time.open.since.timestamp()))),
        }
    )


def close(time: TimeStatus, now: float) -> TimeStatus:
    """Account the open interval up to now to its category, and go on with the same category."""
    if time.open is None or now <= time.open.since.timestamp():
        return time
    elapsed = now - time.open.since.timestamp()
    return time.model_copy(
        update={
            "seconds": add(time.seconds, time.open.category, elapsed),
            "open": OpenInterval(category=time.open.category, since=to_time(now)),
        }
    )


def finished(time: TimeStatus, now: float) -> TimeStatus:
    """Close the account."""
    if time.open is None:
        return time
    elapsed = now - time.open.since.timestamp()
    return time.model_copy(update={"seconds": add(time.seconds, time.open.category, elapsed), "open": None})


def new_attempt(time: TimeStatus) -> TimeStatus:
    """Forget what the agents of the attempt before had reported."""
    return time.model_copy(update={"attempt_seconds": CategorySeconds()})


def up_to(time: TimeStatus, now: float) -> CategorySeconds:
    """Seconds by category with the open interval as part of its own, which is final unless ranks run."""
    if time.open is None:
        return time.seconds
    return add(time.seconds, time.open.category, now - time.open.since.timestamp())


def unrecovered(status: JobStatus) -> RestartRecord | None:
    """The fault that led to the current attempt, while that has not passed the last step before it."""
    history = status.restarts.history
    if not history or history[-1].caught_up_at is not None or history[-1].attempt + 1 != status.gang.attempt:
        return None
    return history[-1]


def attribute(time: TimeStatus, record: RestartRecord, now: float) -> TimeStatus:
    """The account with what was lost since a fault, now that this is over, under the fault's cause."""
    lost = {entry.cause: entry.seconds for entry in time.lost}
    lost[record.cause] = lost.get(record.cause, 0.0) + lost_since(time, record, now)
    entries = [CauseSeconds(cause=cause, seconds=seconds) for cause, seconds in sorted(lost.items())]
    return time.model_copy(update={"lost": entries})


def lost_since(time: TimeStatus, record: RestartRecord, now: float) -> float:
    """Seconds lost since a fault was recorded; 0 where an older version did not note what was lost before."""
    return 0.0 if record.lost_before is None else max(0.0, up_to(time, now).lost() - record.lost_before)
