"""What a demo runs is ended by whoever comes next."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path

from trireme_cli.demo.installation import Installation
from trireme_local.processes import ProcessRecord


def test_the_operator_of_an_earlier_demo_is_ended(tmp_path: Path) -> None:
    operator = subprocess.Popen(["sleep", "60"])
    (tmp_path / "operator.json").write_text(json.dumps(asdict(ProcessRecord.of(operator.pid))))
    Installation(tmp_path).take_down()
    assert operator.wait(5) != 0
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_only_has_the_same_id_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "operator.json").write_text(json.dumps(asdict(ProcessRecord(os.getpid(), 1.0))))
    Installation(tmp_path).take_down()
    assert list(tmp_path.iterdir()) == []
