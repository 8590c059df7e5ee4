"""Write the locks of what the images' CUDA builds need: images/trainer/cuda.lock and images/serving/cuda.lock.

The locks beside pyproject.toml fit every build of torch, so they leave out torch's hashes and its CUDA libraries. Of
the trainer only these are written, as an addition to requirements.lock. vLLM's CUDA build is another package than its
build for processors and pins some of its own, so that lock is whole; what both builds need is of the same version.

    lock_cuda.py UV
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from lock_file import Pin, read_lock

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
SERVING_LOCK = ROOT / "requirements-serving.lock"
OWN_PINS = {"apache-tvm-ffi"}
"""What vLLM's CUDA build pins to another version than the build for processors takes."""
# Where a wheel of torch for processors is offered, it must not be taken here.
ELSEWHERE = {"UV_FIND_LINKS", "UV_TORCH_BACKEND"}


def compile_lock(uv: str, output: Path, *arguments: str | Path) -> dict[str, Pin]:
    """Resolve for CUDA on Linux into `output`, whose pins are kept where they still fit."""
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    command: list[str | Path] = [uv, "pip", "compile", "pyproject.toml", *arguments, "--python-version", "3.11"]
    command += ["--python-platform", "x86_64-manylinux_2_28", "--generate-hashes", "--no-annotate", "--no-header"]
    command += ["--no-emit-index-url", "--no-emit-find-links", "--quiet", "--output-file", output]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    return read_lock(output)


def write(output: Path, comment: str, pins: dict[str, Pin]) -> None:
    """A lock of these pins."""
    output.write_text("".join([f"# {comment}\n", *(f"{pin.text}\n" for pin in pins.values())]))


def trainer(uv: str) -> None:
    """torch's build on the package index and its libraries."""
    output = ROOT / "images" / "trainer" / "cuda.lock"
    found = compile_lock(uv, output, "--extra", "trainer", "--constraint", LOCK)
    locked = read_lock(LOCK)
    beside = {name: pin for name, pin in found.items() if name not in locked or not locked[name].hashes}
    write(output, "Beside requirements.lock, for CUDA; written by `make lock`.", beside)


def serving(uv: str) -> None:
    """vLLM's CUDA build and all that it needs."""
    output = ROOT / "images" / "serving" / "cuda.lock"
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.writelines(f"{pin}\n" for pin in read_lock(SERVING_LOCK).values() if pin.name not in OWN_PINS)
        constraints.flush()
        found = compile_lock(
            uv,
            output,
            *("images/serving/cuda.in", "--extra", "serving", "--override", "serving/overrides.txt"),
            *("--constraint", constraints.name),
        )
    write(output, "The serving image for CUDA, whole; written by `make lock`.", found)


if __name__ == "__main__":
    trainer(sys.argv[1])
    serving(sys.argv[1])
