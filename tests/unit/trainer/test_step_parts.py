"""Where the time of a step goes: each moment in one part, and nothing waits for the measurement."""

from __future__ import annotations

import pytest

from trireme_trainer.metrics.parts import DATA, FORWARD_BACKWARD, OPTIMIZER, OTHER, PartClock


class Device:
    """A device that works behind its host: a stamp is reached when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.reached_until = float("inf")

    def stamp(self) -> Stamp:
        return Stamp(self)


class Stamp:
    def __init__(self, device: Device) -> None:
        self._device, self._at = device, device.now

    @property
    def reached(self) -> bool:
        return self._at <= self._device.reached_until

    def seconds_since(self, earlier: Stamp) -> float:
        assert self.reached, "asked of a moment that the device has not come to"
        return self._at - earlier._at


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def clock(device: Device) -> PartClock:
    return PartClock("cpu", device.stamp)


def a_step(device: Device, clock: PartClock) -> None:
    """1 s of data, 4 s of forward and backward with 1.5 s of waiting in it, 2 s of the optimizer, 0.5 s besides."""
    clock.begin()
    with clock.part(DATA, busy=True):
        device.now += 1.0
    with clock.part(FORWARD_BACKWARD, busy=True):
        device.now += 2.0
        with clock.part(FORWARD_BACKWARD):
            device.now += 1.5
        device.now += 0.5
    device.now += 0.5
    with clock.part(OPTIMIZER):
        device.now += 2.0
    clock.end()


def test_parts_exclude_one_another_and_add_up_to_the_step(device: Device, clock: PartClock) -> None:
    a_step(device, clock)
    timing = clock.last
    assert timing is not None
    assert timing.parts == pytest.approx({DATA: 1.0, FORWARD_BACKWARD: 4.0, OPTIMIZER: 2.0, OTHER: 0.5})
    assert sum(timing.parts.values()) == pytest.approx(device.now)


def test_a_rank_is_busy_where_it_waits_for_no_other(device: Device, clock: PartClock) -> None:
    a_step(device, clock)
    timing = clock.last
    assert timing is not None
    assert timing.busy == pytest.approx(1.0 + 2.5)


def test_a_part_within_another_is_taken_from_it(device: Device, clock: PartClock) -> None:
    clock.begin()
    with clock.part(FORWARD_BACKWARD, busy=True):
        device.now += 1.0
        with clock.part(OPTIMIZER):
            device.now += 3.0
        device.now += 1.0
    clock.end()
    timing = clock.last
    assert timing is not None
    assert timing.parts == pytest.approx({FORWARD_BACKWARD: 2.0, OPTIMIZER: 3.0, OTHER: 0.0})
    assert timing.busy == pytest.approx(2.0)


def test_what_the_device_has_not_come_to_is_not_waited_for(device: Device, clock: PartClock) -> None:
    a_step(device, clock)
    first = clock.last
    device.reached_until = device.now
    clock.begin()
    with clock.part(DATA, busy=True):
        device.now += 9.0
    clock.end()
    assert clock.last is first, "the step before, until the device is through"
    device.reached_until = device.now
    timing = clock.last
    assert timing is not None
    assert timing.parts[DATA] == pytest.approx(9.0)


def test_outside_a_step_nothing_is_timed(device: Device, clock: PartClock) -> None:
    with clock.part(FORWARD_BACKWARD):
        device.now += 5.0
    clock.end()
    assert clock.last is None
    a_step(device, clock)
    timing = clock.last
    assert timing is not None
    assert timing.parts[FORWARD_BACKWARD] == pytest.approx(4.0)


def test_a_step_that_was_begun_early_is_not_begun_again(device: Device, clock: PartClock) -> None:
    clock.begin()
    device.now += 1.0
    a_step(device, clock)
    timing = clock.last
    assert timing is not None
    assert timing.parts[OTHER] == pytest.approx(1.5)


def test_a_part_that_fails_is_closed(device: Device, clock: PartClock) -> None:
    with pytest.raises(RuntimeError), clock.part(FORWARD_BACKWARD, busy=True):
        raise RuntimeError("out of memory")
    a_step(device, clock)
    timing = clock.last
    assert timing is not None
    assert timing.parts[OTHER] == pytest.approx(0.5)
