"""Check that every package of the images has a wheel for their platforms, and that the locks know its hash.

    check_wheels.py UV [IMAGE ...]

uv resolves each image as its Dockerfile does, for each platform, and says which files fit there; nothing is
downloaded but the index. Of the builds for processors torch is left out: it comes from PyTorch's own index.
"""

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lock_file import Pin, read_lock

ROOT = Path(__file__).resolve().parents[1]
PLATFORMS = {"amd64": "x86_64-manylinux_2_36", "arm64": "aarch64-manylinux_2_36"}
"""Architecture of an image -> uv's name of the platform; 2.36 is Debian bookworm's glibc."""
SOURCE_ONLY = {"deepspeed"}
"""Published as source alone; pure Python unless asked to compile its operators, so it takes no compiler."""
WITHOUT_TORCH = 'torch ; sys_platform == "never"\n'


@dataclass(frozen=True)
class Image:
    """What one build of an image is installed from."""

    sources: tuple[str, ...]
    locks: tuple[str, ...]
    torch: bool  # is looked up too
    architectures: tuple[str, ...] = tuple(PLATFORMS)


IMAGES = {
    "operator": Image(("pyproject.toml", "--extra", "operator"), ("requirements.lock",), torch=False),
    "trainer": Image(
        ("pyproject.toml", "--extra", "trainer"), ("requirements.lock", "images/trainer/cuda.lock"), torch=True
    ),
    "trainer-cpu": Image(("pyproject.toml", "--extra", "trainer"), ("requirements.lock",), torch=False),
    "serving": Image(("images/serving/cuda.lock", "--no-deps"), ("images/serving/cuda.lock",), torch=True),
    # vLLM's build for processors needs Intel's runtime of oneAPI on amd64, and other packages than the locked on arm64.
    "serving-cpu": Image(
        ("requirements-serving.lock", "--no-deps"),
        ("requirements-serving.lock",),
        torch=False,
        architectures=("amd64",),
    ),
}


def resolved(uv: str, image: Image, platform: str) -> list[dict[str, Any]]:
    """The image's packages with the files that fit the platform. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        output, override = Path(folder) / "pylock.toml", Path(folder) / "override.txt"
        override.write_text("" if image.torch else WITHOUT_TORCH)
        command = [uv, "pip", "compile", *image.sources, "--override", str(override), "--output-file", str(output)]
        if "--no-deps" not in image.sources:
            command += [word for lock in image.locks for word in ("--constraint", lock)]
        command += ["--python-version", "3.11", "--python-platform", platform, "--quiet"]
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.PIPE, text=True)
        packages: list[dict[str, Any]] = tomllib.loads(output.read_text())["packages"]
    return packages


def problem(package: dict[str, Any], lock: dict[str, Pin]) -> str | None:
    """What is wrong with a resolved package; None where it has a wheel that the lock knows."""
    pin = lock.get(package["name"])
    if pin is None or pin.version != package["version"]:
        return f"{package['name']}=={package['version']} is not in the lock"
    files = package.get("wheels", [])
    if not files and pin.name in SOURCE_ONLY:
        files = [package["sdist"]]
    if not files:
        return f"{pin} has no wheel"
    if not any(file["hashes"]["sha256"] in pin.hashes for file in files):
        return f"{pin} has only wheels with hashes that are not in the lock"
    return None


def locked(names: Iterable[str]) -> dict[str, Pin]:
    """The pins of several locks together; one with hashes goes before one without."""
    pins: dict[str, Pin] = {}
    for name in names:
        for pin in read_lock(ROOT / name).values():
            if pin.name not in pins or pin.hashes:
                pins[pin.name] = pin
    return pins


def check(uv: str, name: str, architecture: str) -> tuple[int, list[str]]:
    """How many packages were looked up, and what is wrong with them."""
    image = IMAGES[name]
    lock = locked(image.locks)
    try:
        packages = resolved(uv, image, PLATFORMS[architecture])
    except subprocess.CalledProcessError as error:
        return 0, error.stderr.strip().splitlines()
    return len(packages), [found for package in packages if (found := problem(package, lock))]


def main(arguments: Sequence[str]) -> int:
    """A line per image and platform, and one per problem; 1 where there is any."""
    uv, *names = arguments
    wanted = [(name, architecture) for name in names or IMAGES for architecture in IMAGES[name].architectures]
    failed = False
    with ThreadPoolExecutor() as threads:
        results = threads.map(lambda one: check(uv, *one), wanted)
        for (name, architecture), (count, problems) in zip(wanted, results, strict=True):
            print(f"{name} {architecture}: {count} packages, {len(problems) or 'no'} problems")
            for line in problems:
                print(f"    {line}")
            failed |= bool(problems) or count == 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
