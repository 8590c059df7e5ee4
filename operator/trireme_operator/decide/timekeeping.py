"""Every second of a job in exactly one category.

Totals of closed intervals and one open interval are in status, so that total + (now - since) is now - creation at
every moment, across restarts of the operator. While ranks run, the agents' reported durations divide the interval;
what they have not reported yet stays in the open interval and belongs to whatever turns out to follow (to `down`, when
the ranks were lost).
"""

from collections.abc import Mapping

from trireme.resources.status import Category, CategorySeconds, OpenInterval, TimeStatus
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
    return TimeStatus(seconds=seconds, open=moved, attempt_seconds=attempt)


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
