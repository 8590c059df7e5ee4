"""The process that prepares an attempt's inputs; its agent starts it and reads the answer from a file.

python -m <program's preparation> --job-file F --target-file F --scratch D --result-file F
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from trireme.protocol import InputsProblem, JobConfig, ProposedResume, Target
from trireme_storage.store import StoreError
from trireme_trainer.agent.channel import AGENT_PID_ENV, die_with_parent
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.checkpoint.proposal import AttemptInStore, ResumeProblem
from trireme_trainer.data.errors import DataError


def answer(propose: Callable[[], ProposedResume]) -> PreparationResult:
    """The proposal, or why there is none."""
    try:
        return PreparationResult(proposal=propose())
    except (StoreError, DataError) as error:
        problem = InputsProblem(reason=error.reason, message=error.message, retryable=error.retryable)
    except AttemptInStore as error:
        problem = InputsProblem(
            reason="AttemptInStore", message=error.message, retryable=True, attempt_in_store=error.attempt
        )
    except ResumeProblem as error:
        problem = InputsProblem(reason=error.reason, message=error.message, retryable=False)
    return PreparationResult(problem=problem)


def main(prepare: Callable[[JobConfig, Target, Path], PreparationResult]) -> None:
    """Prepare and write the answer."""
    if AGENT_PID_ENV in os.environ:
        die_with_parent(int(os.environ[AGENT_PID_ENV]))
    parser = argparse.ArgumentParser()
    for name in ("--job-file", "--target-file", "--scratch", "--result-file"):
        parser.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="[prepare] %(levelname).1s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    job = JobConfig.model_validate_json(arguments.job_file.read_bytes())
    target = Target.model_validate_json(arguments.target_file.read_bytes())
    result = prepare(job, target, arguments.scratch)
    written = arguments.result_file.with_suffix(".part")
    written.write_text(result.to_json())
    written.rename(arguments.result_file)
