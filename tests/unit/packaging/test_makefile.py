"""`make` sets itself up on machines as they are: half-made venvs, and links that only pip knows."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# Stand-ins that note what they are asked; the venv's python has pip unless it is a leftover.
PYTHON = """#!/bin/sh
echo "python3.11 $*" >> {log}
case "$*" in
*ensurepip*) exit {ensurepip} ;;
*venv*) mkdir -p .venv/bin && cp {venv_python} .venv/bin/python && cp {uv} .venv/bin/uv ;;
esac
"""
VENV_PYTHON = """#!/bin/sh
case "$*" in
*"pip --version"*) exit 0 ;;
*"config get {section}.find-links"*) printf '{links}' ;;
*"config get"*) exit 1 ;;
esac
"""
UV = """#!/bin/sh
echo "uv with $UV_FIND_LINKS" >> {log}
"""


class Checkout:
    """A folder with the Makefile alone, and stand-ins for what it calls."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("requirements.lock", "pyproject.toml"):
            (folder / name).touch()
        self.stand_ins()

    def stand_ins(self, *, section: str = "global", links: str = "", ensurepip: int = 0) -> None:
        paths = {"log": self.log, "venv_python": self.folder / "venv_python", "uv": self.folder / "uv"}
        self.script("venv_python", VENV_PYTHON.format(section=section, links=links))
        self.script("uv", UV.format(log=self.log))
        self.script("python3.11", PYTHON.format(ensurepip=ensurepip, **paths))

    def script(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def setup(self, **variables: str) -> subprocess.CompletedProcess[str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "UV_", "MAKE", "MFLAGS"))}
        environment = {**inherited, "PATH": f"{self.folder}:{inherited['PATH']}", **variables}
        return subprocess.run(
            ["make", "setup"], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60
        )

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_a_venv_that_was_left_without_pip_is_made_again(checkout: Checkout) -> None:
    checkout.script(".venv/bin/python", "#!/bin/sh\necho No module named pip >&2; exit 1\n")
    done = checkout.setup()
    assert done.returncode == 0, done.stderr
    assert "python3.11 -m venv --clear .venv" in checkout.calls()


def test_a_good_venv_is_kept(checkout: Checkout) -> None:
    checkout.setup()
    (checkout.folder / "requirements.lock").write_text("changed")
    os.utime(checkout.folder / ".venv" / ".installed", (1, 1))
    assert checkout.setup().returncode == 0
    assert checkout.calls().count("python3.11 -m venv --clear .venv") == 1


def test_a_missing_venv_module_is_said_in_one_line_and_leaves_nothing(checkout: Checkout) -> None:
    checkout.stand_ins(ensurepip=1)
    done = checkout.setup()
    assert done.returncode != 0
    said, end = done.stderr.splitlines()
    assert "install python3.11 and python3.11-venv" in said
    assert end.startswith("make: ***")
    assert not (checkout.folder / ".venv").exists()


@pytest.mark.parametrize("section", ["global", "install"])
def test_links_of_pips_files_reach_uv_separated_by_commas(checkout: Checkout, section: str) -> None:
    checkout.stand_ins(section=section, links="/a\\nhttps://b/c\\n")
    checkout.setup()
    assert checkout.calls()[-2:] == ["uv with /a,https://b/c"] * 2


@pytest.mark.parametrize(
    ("variables", "links"),
    [
        ({"PIP_FIND_LINKS": "/x /y"}, "/x,/y"),
        ({"PIP_FIND_LINKS": "/x", "UV_FIND_LINKS": "/u,/v"}, "/u,/v"),
    ],
)
def test_variables_go_before_files(checkout: Checkout, variables: dict[str, str], links: str) -> None:
    checkout.stand_ins(links="/a")
    checkout.setup(**variables)
    assert checkout.calls()[-2:] == [f"uv with {links}"] * 2


def test_without_links_uv_gets_none(checkout: Checkout) -> None:
    checkout.setup()
    assert checkout.calls()[-2:] == ["uv with "] * 2
