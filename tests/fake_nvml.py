"""Stands in for libnvidia-ml.so.1 below the real pynvml: devices that answer as they did when they were recorded.

`install(recording)` in a test's own process; in others by FAKE_NVML_RECORDING (a file) with `nvml_site/` first
in PYTHONPATH. The file is read at every answer, so that a test can change what a device says.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml

RECORDING = Path(__file__).with_name("nvml_recording.json")
OK, NOT_SUPPORTED, TIMEOUT = 0, pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_TIMEOUT
MIB = 1 << 20


class FakeLibrary:
    """The functions of the library, by their names in C."""

    def __init__(self, recording: Path) -> None:
        self._recording = recording
        self._told: dict[int, int] = {}
        """XIDs of each device that an event was made of."""

    def _devices(self) -> list[dict[str, Any]]:
        return list(json.loads(self._recording.read_text())["devices"])

    def _device(self, handle: Any) -> dict[str, Any]:
        return self._devices()[_number(handle) - 1]

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Of a function that answers with one number of the recording."""
        fields = {
            "nvmlDeviceGetPowerUsage": "powerMilliwatts",
            "nvmlDeviceGetTemperature": "temperatureCelsius",
            "nvmlDeviceGetClockInfo": "smClockMegahertz",
            "nvmlDeviceGetCurrentClocksEventReasons": "clocksEventReasons",
        }
        if name not in fields:
            raise AttributeError(name)

        def answer(handle: Any, *rest: Any) -> int:
            value = self._device(handle)[fields[name]]
            if value is None:
                return int(NOT_SUPPORTED)
            rest[-1]._obj.value = value
            return OK

        return answer

    def nvmlInitWithFlags(self, _flags: Any) -> int:
        return OK

    def nvmlErrorString(self, code: Any) -> bytes:
        return f"error {code}".encode()

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self._devices())
        return OK

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        _point(handle._obj, index.value + 1)
        return OK

    def nvmlDeviceGetUUID(self, handle: Any, buffer: Any, _length: Any) -> int:
        buffer.value = self._device(handle)["uuid"].encode()
        return OK

    def nvmlDeviceGetName(self, handle: Any, buffer: Any, _length: Any) -> int:
        buffer.value = self._device(handle)["name"].encode()
        return OK

    def nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> int:
        percent = self._device(handle)["utilizationPercent"]
        if percent is None:
            return int(NOT_SUPPORTED)
        rates._obj.gpu = percent
        return OK

    def nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> int:
        device = self._device(handle)
        memory._obj.total, memory._obj.used = device["memoryTotalMiB"] * MIB, device["memoryUsedMiB"] * MIB
        return OK

    def nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: Any, _counter: Any, count: Any) -> int:
        corrected = kind.value == pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED
        count._obj.value = self._device(handle)["eccCorrected" if corrected else "eccUncorrected"]
        return OK

    def nvmlEventSetCreate(self, events: Any) -> int:
        _point(events._obj, 1)
        return OK

    def nvmlDeviceRegisterEvents(self, handle: Any, kinds: Any, _events: Any) -> int:
        assert kinds.value == pynvml.nvmlEventTypeXidCriticalError
        self._told[_number(handle)] = len(self._device(handle)["xids"])
        return OK

    def nvmlEventSetWait_v2(self, _events: Any, data: Any, timeout: Any) -> int:
        assert timeout.value == 0, "a scrape must not wait"
        for number, told in self._told.items():
            xids = self._devices()[number - 1]["xids"]
            if len(xids) > told:
                _point(data._obj.device, number)
                data._obj.eventData = xids[told]
                self._told[number] = told + 1
                return OK
        return int(TIMEOUT)


def _point(handle: Any, number: int) -> None:
    """Have a handle, an opaque pointer to the caller, point to a device's number."""
    ctypes.cast(ctypes.pointer(handle), ctypes.POINTER(ctypes.c_void_p))[0] = number


def _number(handle: Any) -> int:
    return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)


def install(recording: Path = RECORDING) -> None:
    """Have pynvml of this process talk to the recorded devices."""
    pynvml.nvmlLib = FakeLibrary(recording)
    pynvml._nvmlGetFunctionPointer_cache.clear()


def remove() -> None:
    """Undo `install`."""
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()
