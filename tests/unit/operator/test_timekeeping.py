"""Every second of a job is in exactly one category."""

from hypothesis import given
from hypothesis import strategies as st

from trireme.resources.status import Category
from trireme_operator.decide import timekeeping
from trireme_operator.decide.timekeeping import AGENT_CATEGORIES

CREATED = 1_000.0
steps = st.lists(
    st.tuples(
        st.floats(0, 100),
        st.sampled_from(list(Category)),
        st.booleans(),
        st.dictionaries(st.sampled_from([c.value for c in AGENT_CATEGORIES]), st.floats(0, 50)),
    ),
    max_size=30,
)


@given(steps)
def test_the_sum_is_now_minus_creation_whatever_agents_report(
    life: list[tuple[float, Category, bool, dict[str, float]]],
) -> None:
    time, now = timekeeping.started(CREATED), CREATED
    for elapsed, category, keep_open, reported in life:
        now += elapsed
        time = timekeeping.take_reported(time, now, reported)
        time = timekeeping.switch(time, now, category, keep_open=keep_open)
        assert time.open is not None
        assert abs(time.seconds.total() + now - time.open.since.timestamp() - (now - CREATED)) < 1e-3
        assert time.open.since.timestamp() <= now + 1e-3
    ended = timekeeping.finished(time, now)
    assert ended.open is None
    assert abs(ended.seconds.total() - (now - CREATED)) < 1e-3


def test_reported_seconds_are_taken_once() -> None:
    time = timekeeping.started(CREATED)
    time = timekeeping.take_reported(time, CREATED + 10, {"productive": 6.0})
    time = timekeeping.take_reported(time, CREATED + 10, {"productive": 6.0})
    assert time.seconds.productive == 6.0
    time = timekeeping.take_reported(time, CREATED + 20, {"productive": 9.0, "checkpointStall": 2.0})
    assert (time.seconds.productive, time.seconds.checkpoint_stall) == (9.0, 2.0)


def test_what_was_not_reported_before_a_fault_is_down_time() -> None:
    time = timekeeping.switch(timekeeping.started(CREATED), CREATED, Category.PRODUCTIVE)
    time = timekeeping.take_reported(time, CREATED + 10, {"productive": 10.0})
    time = timekeeping.switch(time, CREATED + 17, Category.DOWN, keep_open=True)
    time = timekeeping.switch(time, CREATED + 20, Category.STARTUP)
    assert (time.seconds.productive, time.seconds.down) == (10.0, 10.0)
