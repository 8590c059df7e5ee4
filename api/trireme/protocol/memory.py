"""What a device's memory is needed for."""

from pydantic import Field

from trireme.protocol.base import WireModel


class DeviceMemory(WireModel):
    """Bytes on the fullest device, by part."""

    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    overhead_bytes: int = Field(description="Context, communication buffers, fragmentation.")
    total_bytes: int
    available_bytes: int | None = Field(
        default=None, description="Absent: memory is not limited (CPU without a limit)."
    )
