"""An operator image installs the operator extra alone; torch must not come along."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.long
def test_the_operator_extra_installs_and_starts_without_torch(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    uv = Path(sys.executable).parent / "uv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    python = venv / "bin" / "python"
    install = [uv, "pip", "install", "--quiet", "--python", python, "--constraint", constraints(tmp_path)]
    subprocess.run([*install, f"{ROOT}[operator]"], check=True, env=os.environ)
    listed = subprocess.run([uv, "pip", "list", "--python", python], check=True, capture_output=True, text=True).stdout
    names = {line.split()[0].lower() for line in listed.splitlines()[2:]}
    assert "kopf" in names
    assert not names & {"torch", "megatron-core", "deepspeed", "transformers", "boto3"}
    subprocess.run([python, "-m", "trireme_operator", "--help"], check=True, capture_output=True)


def constraints(folder: Path) -> Path:
    """The lock as constraints: versions only, since constraints may not name hashes for other builds."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pins = [line.split(" ")[0] for line in lines if "==" in line]
    path = folder / "constraints.txt"
    path.write_text("\n".join(pins) + "\n")
    return path
