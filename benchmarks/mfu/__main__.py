"""python -m benchmarks.mfu [--rows NAME ...] [--output benchmarks/mfu/results.md]"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from benchmarks.mfu.rows import ROWS
from benchmarks.mfu.worker import Measurement, median_and_spread

from trireme.planning.hardware import HARDWARE


def main() -> int:
    """Measure the rows one after the other and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mfu", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--blocks", type=int, default=3, help="alternated blocks per contender")
    parser.add_argument("--steps", type=int, default=5, help="timed steps per block")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("results.md"))
    parser.add_argument("--commit", help="commit to record; default: git's HEAD")
    arguments = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        print("benchmarks/mfu needs a CUDA device; there is none here, so nothing was measured.")
        return 0
    name = torch.cuda.get_device_name()
    peak = _peak_tflops(name)
    measured = [_measure(row, arguments.blocks, arguments.steps) for row in arguments.rows]
    page = _page(measured, name, peak, arguments.commit or _commit())
    arguments.output.write_text(page)
    print(page)
    return 0


def _peak_tflops(device_name: str) -> float:
    """Dense bf16 peak of the device from the hardware table; raises SystemExit for one that is not in it."""
    for needle, key in (("H100 PCIe", "h100-pcie"), ("H100", "h100-sxm"), ("H200", "h200-sxm"), ("A100", "a100-80g")):
        if needle in device_name:
            peak = HARDWARE[key].bf16_tflops
            assert peak is not None
            return peak
    raise SystemExit(f"no bf16 peak known for {device_name!r}: add it to trireme.planning.hardware")


def _measure(row: str, blocks: int, steps: int) -> Measurement:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.mfu.worker", row, str(blocks), str(steps), str(port)]
    # Activations of one size come and go beside fixed states: expandable segments keep the gaps usable.
    environment = os.environ | {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    line = next(line for line in output.splitlines() if line.startswith("MEASUREMENT "))
    measurement = Measurement(**json.loads(line.removeprefix("MEASUREMENT ")))
    print(f"{row}: engine median {median_and_spread(measurement.engine_seconds)[0]:.3f} s/step", flush=True)
    return measurement


def _page(measured: list[Measurement], device: str, peak: float, commit: str) -> str:
    import megatron.core
    import torch

    header = (
        "| shape | parameters | sequence | micro-batch x accumulation | contender | tokens/s | TFLOP/s | MFU "
        "| spread | engine / bare | peak memory |\n|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|"
    )
    lines = [line for measurement in measured for line in _lines(measurement, peak)]
    rows = ", ".join(f"{m.row}: {m.first_loss:.3f} to {m.last_loss:.3f}" for m in measured)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    versions = (
        f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"megatron-core {megatron.core.__version__}"
    )
    return f"""# Model FLOPs utilisation on one device

- command: `python -m benchmarks.mfu {shlex.join(sys.argv[1:])}`
- hardware: {device}, driver {driver}, {os.cpu_count()} CPU cores
- versions: {versions}
- commit: {commit}
- date: {datetime.datetime.now(datetime.UTC).date().isoformat()}

{header}
{chr(10).join(lines)}

MFU is model FLOP/s over the dense bf16 peak of {peak:g} TFLOP/s. The FLOPs are those of the matrix products, forward
and backward, attention counted over the whole square (PaLM, appendix B); nothing is recomputed. bf16 weights and
activations, fp32 gradients, fp32 master weights and Adam moments, clipping on; every row is a whole training step with
the optimizer. "bare" is a hand-written loop over the same Megatron-core model, schedule and optimizer in the same
process, blocks alternated; it reads nothing back from the device. Spread is the middle 80% of steps over the median.
Losses on random tokens over the run: {rows}.
"""


def _lines(m: Measurement, peak: float) -> list[str]:
    row = ROWS[m.row]
    medians = {"trireme": median_and_spread(m.engine_seconds), "bare": median_and_spread(m.bare_seconds)}
    ratio = medians["bare"][0] / medians["trireme"][0]
    lines = []
    for contender, (seconds, spread) in medians.items():
        tokens = m.tokens_per_step / seconds
        tflops = tokens * m.flops_per_token / 1e12
        lines.append(
            f"| {m.row} | {m.parameters / 1e9:.2f}B | {row.sequence_length} "
            f"| {row.micro_batch_size} x {row.accumulation} | {contender} | {tokens:,.0f} | {tflops:.0f} "
            f"| {tflops / peak:.1%} | {spread:.1%} | {f'{ratio:.3f}' if contender == 'trireme' else ''} "
            f"| {m.peak_memory_bytes / 2**30:.0f} GiB |"
        )
    return lines


def _commit() -> str:
    return subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
