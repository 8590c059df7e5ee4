"""Facts of the pod's NVIDIA devices, asked of the driver (NVML) at each scrape; without one there is no collector."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from trireme.metrics import Metric
from trireme_trainer.metrics import definitions

log = logging.getLogger(__name__)

XID_EVENT = 0x8
"""nvmlEventTypeXidCriticalError."""
THROTTLE_REASONS = {
    "powerCap": 0x4,  # nvmlClocksEventReasonSwPowerCap, and so on
    "hardware": 0x8,
    "softwareThermal": 0x20,
    "hardwareThermal": 0x40,
    "powerBrake": 0x80,
}
"""What holds clocks below what was asked for; being idle and a user's own limit do not count."""


@dataclass
class _Device:
    index: str
    handle: Any
    xids: dict[int, int] = field(default_factory=dict)


class DeviceCollector(Collector):
    """Asks NVML. It opens no device for computation, so ranks may be forked and started beside it."""

    def __init__(self, nvml: Any, labels: tuple[str, ...]) -> None:
        """`nvml`: pynvml after nvmlInit()."""
        self._nvml = nvml
        self._labels = labels
        self._lock = threading.Lock()  # a scrape may overlap another
        self._devices = [_Device(str(i), nvml.nvmlDeviceGetHandleByIndex(i)) for i in range(nvml.nvmlDeviceGetCount())]
        self._events: Any = None
        try:
            self._events = nvml.nvmlEventSetCreate()
            for device in self._devices:
                nvml.nvmlDeviceRegisterEvents(device.handle, XID_EVENT, self._events)
        except nvml.NVMLError as error:
            log.info("XID errors of the devices cannot be seen: %s", error)

    @classmethod
    def open(cls, labels: tuple[str, ...]) -> DeviceCollector | None:
        """The collector for the pod's devices; None where there are none. `labels`: values of the job's labels."""
        import pynvml

        try:
            pynvml.nvmlInit()
            found = cls(pynvml, labels)
        except pynvml.NVMLError as error:
            log.debug("no NVIDIA devices: %s", error)
            return None
        return found if found._devices else None

    def collect(self) -> Iterator[Family]:
        """What each device tells; what it does not support it has no series of."""
        with self._lock:
            self._take_events()
            samples: dict[Metric, list[tuple[tuple[str, ...], float]]] = {
                metric: [] for metric in definitions.DEVICE_GROUP.metrics
            }
            for device in self._devices:
                for metric, more, value in self._facts(device):
                    samples[metric].append(((*self._labels, device.index, *more), value))
        for metric, found in samples.items():
            if found:
                yield metric.family(found)

    def _facts(self, device: _Device) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
        nvml, handle = self._nvml, device.handle
        uuid, product = self._ask(nvml.nvmlDeviceGetUUID, handle), self._ask(nvml.nvmlDeviceGetName, handle)
        yield definitions.DEVICE_INFO, (str(uuid or ""), str(product or "")), 1.0
        if (rates := self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)) is not None:
            yield definitions.DEVICE_UTILISATION, (), rates.gpu / 100.0
        if (memory := self._ask(nvml.nvmlDeviceGetMemoryInfo, handle)) is not None:
            yield definitions.DEVICE_MEMORY_USED, (), float(memory.used)
            yield definitions.DEVICE_MEMORY_TOTAL, (), float(memory.total)
        if (milliwatts := self._ask(nvml.nvmlDeviceGetPowerUsage, handle)) is not None:
            yield definitions.DEVICE_POWER, (), milliwatts / 1000.0
        if (celsius := self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU)) is not None:
            yield definitions.DEVICE_TEMPERATURE, (), float(celsius)
        if (megahertz := self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM)) is not None:
            yield definitions.DEVICE_CLOCK, (), megahertz * 1e6
        if (reasons := self._throttled(handle)) is not None:
            for name, bit in THROTTLE_REASONS.items():
                yield definitions.DEVICE_THROTTLED, (name,), float(bool(reasons & bit))
        yield from self._errors(device)

    def _errors(self, device: _Device) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
        nvml = self._nvml
        kinds = {
            "corrected": nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED,
            "uncorrected": nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
        }
        for name, kind in kinds.items():
            count = self._ask(nvml.nvmlDeviceGetTotalEccErrors, device.handle, kind, nvml.NVML_VOLATILE_ECC)
            if count is not None:
                yield definitions.DEVICE_ECC_ERRORS, (name,), float(count)
        for xid, number in sorted(device.xids.items()):
            yield definitions.DEVICE_XID_ERRORS, (str(xid),), float(number)

    def _throttled(self, handle: Any) -> int | None:
        """Drivers before 535 have it under its older name."""
        reasons = self._ask(self._nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
        if reasons is None:
            reasons = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        return None if reasons is None else int(reasons)

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The driver's answer; None where it has none, as for the load of a device that is cut up (MIG)."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None

    def _take_events(self) -> None:
        """Count what the driver has kept since the last scrape, without waiting for more."""
        if self._events is None:
            return
        while True:
            try:
                event = self._nvml.nvmlEventSetWait_v2(self._events, 0)
            except self._nvml.NVMLError:  # a time-out: there is no more
                return
            uuid = self._ask(self._nvml.nvmlDeviceGetUUID, event.device)
            for device in self._devices:
                if self._ask(self._nvml.nvmlDeviceGetUUID, device.handle) == uuid:
                    xid = int(event.eventData)
                    device.xids[xid] = device.xids.get(xid, 0) + 1
