"""The images fit what the operator writes into pods, and Dockerfiles and workflows are free of findings."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trireme.protocol.base import METRICS_PORT
from trireme.protocol.serving import STATUS_PORT
from trireme_operator.build import parts
from trireme_operator.build.names import AGENT_PORT
from trireme_operator.config import OperatorConfig
from trireme_operator.services.names import SERVING_PORT

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

import check_wheels  # noqa: E402

BIN = Path(sys.executable).parent
WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"
PROGRAMS = {
    "operator": (["python", "-m", "trireme_operator"], {OperatorConfig.parse([], environ={}).http_port}),
    "trainer": (["python", "-m", "trireme_trainer.agent"], {AGENT_PORT, METRICS_PORT}),
    "serving": (["python", "-m", "trireme_serving"], {SERVING_PORT, STATUS_PORT, METRICS_PORT}),
}


def instruction(text: str, name: str) -> str:
    """The argument of the last instruction of this name."""
    return re.findall(rf"^{name} (.+)$", text, re.MULTILINE)[-1]


@pytest.mark.parametrize("name", PROGRAMS)
def test_user_ports_and_program_are_those_of_the_pods(name: str) -> None:
    program, ports = PROGRAMS[name]
    text = (ROOT / "images" / name / "Dockerfile").read_text()
    assert instruction(text, "USER") == f"{parts.USER_ID}:{parts.USER_ID}"
    assert json.loads(instruction(text, "ENTRYPOINT")) == program
    assert {int(port) for port in instruction(text, "EXPOSE").split()} == ports


def test_bases_are_arguments_pinned_by_digest_and_the_same_everywhere() -> None:
    texts = [(ROOT / "images" / name / "Dockerfile").read_text() for name in PROGRAMS]
    for argument in ("BASE_IMAGE", "UV_IMAGE"):
        (value,) = {pinned(text, argument) for text in texts}
        assert re.search(r"@sha256:[0-9a-f]{64}$", value)
    for text in texts:
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE_IMAGE}", "${UV_IMAGE}"}


def pinned(text: str, argument: str) -> str:
    """The default of a build argument."""
    (value,) = re.findall(rf"^ARG {argument}=(.+)$", text, re.MULTILINE)
    return str(value)


def test_the_workflow_builds_what_was_checked_for_wheels_and_pins_its_actions() -> None:
    text = WORKFLOW.read_text()
    jobs = yaml.safe_load(text)["jobs"]
    built = set()
    for one in jobs["build"]["strategy"]["matrix"]["include"]:
        suffix = "-cpu" if one["device"] == "cpu" else ""
        built.add((one["image"] + suffix, one["architecture"]))
    assert built == {(name, where) for name, image in check_wheels.IMAGES.items() for where in image.architectures}
    published = {one["image"] + one["suffix"] for one in jobs["publish"]["strategy"]["matrix"]["include"]}
    assert published == set(check_wheels.IMAGES)
    used = re.findall(r"uses: (\S+)", text)
    assert used
    assert [action for action in used if not re.search(r"@[0-9a-f]{40}$", action)] == []


@pytest.mark.parametrize("program", ["hadolint", "actionlint"])
def test_the_linters_of_images_see_what_is_wrong(program: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    bad.write_text({"hadolint": "FROM debian\n", "actionlint": "on: nothing\njobs: {}\n"}[program])
    done = subprocess.run([BIN / program, bad], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "bad:" in done.stdout
