"""Panels of NVIDIA devices, which agents read from the driver (NVML): without such devices they are empty."""

from trireme_monitoring.board import Column, Panel, Query, lines, rows
from trireme_monitoring.promql import by, or_zero, rate, shown
from trireme_trainer.metrics import definitions as trainer

DEVICE = "instance, device"
LEGEND = "{{instance}} device {{device}}"


def device_panels() -> list[Panel]:
    """Of one job's devices."""
    used, there = shown(trainer.DEVICE_MEMORY_USED), shown(trainer.DEVICE_MEMORY_TOTAL)
    throttled = f"{by('max', f'{DEVICE}, reason', shown(trainer.DEVICE_THROTTLED))} > 0"
    errors = by("sum", f"{DEVICE}, type", rate(trainer.DEVICE_ECC_ERRORS))
    xids = by("sum", f"{DEVICE}, xid", shown(trainer.DEVICE_XID_ERRORS))
    return [
        lines(
            "Device use",
            "Share of the driver's last sample period in which a kernel ran; it says nothing of how well.",
            "percentunit",
            Query(shown(trainer.DEVICE_UTILISATION), LEGEND),
            top=1,
        ),
        lines(
            "Device memory",
            "Share of a device's memory in use.",
            "percentunit",
            Query(f"{used} / {there}", LEGEND),
            top=1,
        ),
        lines("Power", "Power drawn by each device.", "watt", Query(shown(trainer.DEVICE_POWER), LEGEND)),
        lines("Temperature", "Of each chip.", "celsius", Query(shown(trainer.DEVICE_TEMPERATURE), LEGEND)),
        lines("Clock", "Of each device's multiprocessors.", "hertz", Query(shown(trainer.DEVICE_CLOCK), LEGEND)),
        lines(
            "Throttled",
            "Devices whose clocks are held down, and by what: a reason at 1 holds.",
            "none",
            Query(or_zero(throttled, "reason"), f"{LEGEND}: {{{{reason}}}}"),
        ),
        lines(
            "Memory errors",
            "ECC errors per second. Uncorrected ones end a rank; corrected ones that grow foretell them.",
            "none",
            Query(errors, f"{LEGEND} {{{{type}}}}"),
        ),
        lines(
            "XID errors",
            "What the driver reported since the agent began, by NVIDIA's number; 79 is a device off the bus.",
            "none",
            Query(or_zero(xids, "xid"), f"{LEGEND}: XID {{{{xid}}}}"),
        ),
        rows(
            "Devices",
            "Which devices the job's pods have.",
            {"instance": "Pod", "device": "Device", "product": "Product", "uuid": "UUID"},
            Column("", by("max", f"{DEVICE}, product, uuid", shown(trainer.DEVICE_INFO)), hidden=True),
        ),
    ]
