"""The check of wheels sees what would fail in an image's build; the real index is asked by a long test."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import check_wheels  # noqa: E402
from lock_file import Pin  # noqa: E402

KNOWN, OTHER = "a" * 64, "b" * 64
LOCK = {name: Pin(name, "1.0", frozenset({KNOWN}), f"{name}==1.0") for name in ("kopf", "deepspeed")}


def package(
    name: str = "kopf", version: str = "1.0", *, wheel: str | None = KNOWN, sdist: str = KNOWN
) -> dict[str, object]:
    """A package as uv writes it into pylock.toml."""
    files = {"wheels": [{"hashes": {"sha256": wheel}}]} if wheel else {}
    return {"name": name, "version": version, "sdist": {"hashes": {"sha256": sdist}}, **files}


@pytest.mark.parametrize(
    ("resolved", "said"),
    [
        (package(), None),
        (package(wheel=None), "kopf==1.0 has no wheel"),
        (package(wheel=OTHER), "kopf==1.0 has only wheels with hashes that are not in the lock"),
        (package(version="1.1"), "kopf==1.1 is not in the lock"),
        (package("unheard-of"), "unheard-of==1.0 is not in the lock"),
        (package("deepspeed", wheel=None), None),
        (package("deepspeed", wheel=None, sdist=OTHER), "deepspeed==1.0 has only wheels with hashes"),
    ],
)
def test_a_package_passes_with_a_wheel_that_the_lock_knows(resolved: dict[str, object], said: str | None) -> None:
    found = check_wheels.problem(resolved, LOCK)
    assert found is None if said is None else found is not None and found.startswith(said)


def test_what_uv_refuses_is_said_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\necho 'no wheels with a matching platform tag' >&2; exit 1\n")
    uv.chmod(0o755)
    assert check_wheels.main([str(uv), "operator"]) == 1
    assert capsys.readouterr().out.count("    no wheels with a matching platform tag") == len(check_wheels.PLATFORMS)


@pytest.mark.long
def test_every_package_of_the_images_has_a_wheel_for_their_platforms() -> None:
    command = [sys.executable, ROOT / "scripts" / "check_wheels.py", Path(sys.executable).parent / "uv"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(len(image.architectures) for image in check_wheels.IMAGES.values())
