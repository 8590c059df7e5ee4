"""The hardware table: dense peak rates without sparsity, memory, usual devices in a node."""

from dataclasses import dataclass
from typing import Literal

AcceleratorKind = Literal[
    "cpu",
    "v100-sxm-16g",
    "v100-sxm-32g",
    "a100-40g",
    "a100-80g",
    "a10g",
    "l4",
    "l40s",
    "h100-pcie",
    "h100-sxm",
    "h200-sxm",
    "b200-sxm",
]


@dataclass(frozen=True)
class Hardware:
    """One kind of device. Rates are operations per second, dense; memory is what the maker states."""

    name: str
    bf16_tflops: float | None
    fp32_tflops: float | None
    """Plain float32, not TF32: the engine asks for full precision."""
    memory_bytes: int | None
    """None: the pod's memory limit shared out over its ranks."""
    source: str
    resource_name: str | None = "nvidia.com/gpu"
    intra_node_gigabytes_per_second: float | None = None
    """Both directions together, per device."""

    def peak_tflops(self, precision: str) -> float | None:
        """Peak rate in 10^12 operations per second for 'bf16' or 'fp32'; None where it is measured instead."""
        return self.bf16_tflops if precision == "bf16" else self.fp32_tflops


_GB = 1024**3
# Makers say GB and mean GiB for HBM and GDDR stacks; what a framework can use is a little less (planner's reserve).
HARDWARE: dict[str, Hardware] = {
    h.name: h
    for h in (
        Hardware("cpu", None, None, None, "measured on the machine", resource_name=None),
        Hardware("v100-sxm-16g", None, 15.7, 16 * _GB, "NVIDIA V100 datasheet 2020", "nvidia.com/gpu", 300),
        Hardware("v100-sxm-32g", None, 15.7, 32 * _GB, "NVIDIA V100 datasheet 2020", "nvidia.com/gpu", 300),
        Hardware("a100-40g", 312, 19.5, 40 * _GB, "NVIDIA A100 datasheet 2021", "nvidia.com/gpu", 600),
        Hardware("a100-80g", 312, 19.5, 80 * _GB, "NVIDIA A100 datasheet 2021", "nvidia.com/gpu", 600),
        Hardware("a10g", 70, 35, 24 * _GB, "NVIDIA A10G datasheet 2022", "nvidia.com/gpu", 64),
        Hardware("l4", 121, 30.3, 24 * _GB, "NVIDIA L4 datasheet 2023", "nvidia.com/gpu", 64),
        Hardware("l40s", 362, 91.6, 48 * _GB, "NVIDIA L40S datasheet 2023", "nvidia.com/gpu", 64),
        Hardware("h100-pcie", 756, 51, 80 * _GB, "NVIDIA H100 datasheet 2023", "nvidia.com/gpu", 600),
        Hardware("h100-sxm", 989, 67, 80 * _GB, "NVIDIA H100 datasheet 2023", "nvidia.com/gpu", 900),
        Hardware("h200-sxm", 989, 67, 141 * 10**9, "NVIDIA H200 datasheet 2024", "nvidia.com/gpu", 900),
        Hardware("b200-sxm", 2250, 80, 180 * 10**9, "NVIDIA HGX B200 datasheet 2025", "nvidia.com/gpu", 1800),
    )
}
