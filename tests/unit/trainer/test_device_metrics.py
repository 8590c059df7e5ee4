"""Facts of NVIDIA devices: those that the driver tells, and none where there is no driver."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pynvml
import pytest
from prometheus_client import CollectorRegistry, generate_latest

import fake_nvml
from trireme_trainer.metrics.devices import DeviceCollector

LABELS = ("default", "j", "PretrainJob")
OF_JOB = 'job_name="j",kind="PretrainJob",namespace="default"'


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "recording.json"
    path.write_text(fake_nvml.RECORDING.read_text())
    fake_nvml.install(path)
    yield path
    fake_nvml.remove()


def change(path: Path, device: int, **facts: Any) -> None:
    content = json.loads(path.read_text())
    content["devices"][device] |= facts
    path.write_text(json.dumps(content))


def series(collector: DeviceCollector) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    lines = generate_latest(registry).decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def opened() -> DeviceCollector:
    found = DeviceCollector.open(LABELS)
    assert found is not None
    return found


def test_recorded_devices_are_told_in_base_units(recording: Path) -> None:
    found = series(opened())
    assert found[f'trireme_device_memory_total_bytes{{device="0",{OF_JOB}}}'] == 23028 * 2**20
    assert found[f'trireme_device_power_watts{{device="0",{OF_JOB}}}'] == pytest.approx(25.58)
    assert found[f'trireme_device_temperature_celsius{{device="1",{OF_JOB}}}'] == 27
    assert found[f'trireme_device_sm_clock_hertz{{device="1",{OF_JOB}}}'] == 1.275e9
    uuid = "GPU-00000000-0000-0000-0000-0000000000a0"
    assert found[f'trireme_device_info{{device="0",{OF_JOB},product="NVIDIA A10G",uuid="{uuid}"}}'] == 1


def test_what_a_device_does_not_tell_has_no_series(recording: Path) -> None:
    found = series(opened())
    assert found[f'trireme_device_utilization_ratio{{device="0",{OF_JOB}}}'] == 0
    assert f'trireme_device_utilization_ratio{{device="1",{OF_JOB}}}' not in found
    assert not [name for name in found if name.startswith("trireme_device_xid")]


def test_a_throttled_device_names_the_reason_and_being_idle_is_none(recording: Path) -> None:
    collector = opened()
    name = 'trireme_device_clock_throttled{device="0",%s,reason="%s"}'
    assert not any(
        value for key, value in series(collector).items() if key.startswith("trireme_device_clock_throttled")
    )
    change(recording, 0, clocksEventReasons=0x40 | 0x8)
    found = series(collector)
    assert found[name % (OF_JOB, "hardwareThermal")] == found[name % (OF_JOB, "hardware")] == 1
    assert found[name % (OF_JOB, "powerCap")] == 0


def test_errors_are_counted_once_each(recording: Path) -> None:
    change(recording, 1, xids=[13])
    collector = opened()
    series(collector)
    change(recording, 1, xids=[13, 79, 79], eccUncorrected=2)
    found = series(collector)
    assert found[f'trireme_device_xid_errors_total{{device="1",{OF_JOB},xid="79"}}'] == 2
    assert not [name for name in found if 'xid="13"' in name], "what was before the agent began is not its to count"
    assert found[f'trireme_device_ecc_errors_total{{device="1",{OF_JOB},type="uncorrected"}}'] == 2
    assert series(collector) == found


def test_an_older_driver_is_asked_for_throttling_by_the_older_name(
    recording: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(handle: Any) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksEventReasons", unknown)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: 0x4)
    found = series(opened())
    assert found[f'trireme_device_clock_throttled{{device="0",{OF_JOB},reason="powerCap"}}'] == 1


def test_without_a_driver_there_is_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", _no_library)
    assert DeviceCollector.open(LABELS) is None


def test_a_driver_without_devices_is_nothing(recording: Path) -> None:
    recording.write_text(json.dumps({"devices": []}))
    assert DeviceCollector.open(LABELS) is None


def _no_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")
