"""A fine-tuning job's losses are those of the script that one writes by hand over trl and peft."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from finetune_harness import make_base, make_finetune_job, make_finetune_spec
from gang_harness import Gang, S3Server, free_port
from test_finetuning import finish, losses

from stdlib_examples import write_examples
from trireme.checkpoints import parse_s3_uri
from trireme_trainer.hf.data import ExampleDataset

ROOT = Path(__file__).parents[3]
STEPS, BATCH, SEED = 30, 8, 7


def plain(settings: dict[str, object], ranks: int, directory: Path) -> list[float]:
    """The losses of the script's steps."""
    given, out = directory / "settings.json", directory / "plain.json"
    given.write_text(json.dumps(settings))
    run = [sys.executable, "-m"]
    if ranks > 1:
        run += ["torch.distributed.run", f"--nproc-per-node={ranks}", f"--master-port={free_port()}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*run, "benchmarks.finetune.plain", given, out], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [step["loss"] for step in json.loads(out.read_text())]


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "ranks", "zero"),
    [("lora", 1, 0), ("lora", 2, 0), ("full", 1, 0), ("full", 2, 0), ("full", 2, 2)],
    ids=["lora", "lora on two", "full", "full on two", "full on two with ZeRO-2"],
)
def test_every_steps_loss_is_that_of_a_plain_script(
    make_gang: Callable[..., Gang], server: S3Server, tmp_path: Path, method: str, ranks: int, zero: int
) -> None:
    """With the same examples in the same order, seed and settings, in float32: within 1e-4."""
    base, examples = make_base(tmp_path / "base"), tmp_path / "train.jsonl"
    assert write_examples(examples, "argparse.py", "string.py", "shutil.py", "textwrap.py") > 40
    # Short enough for the base, so that both train the same ones.
    lines = [line for line in examples.read_text().splitlines() if len(line) < 500]
    examples.write_text("\n".join(lines) + "\n")
    changes = {
        "method": {"type": method, **({"lora": {"rank": 4}} if method == "lora" else {})},
        "data__overlong": "refuse",
        "workers__devicesPerNode": ranks,
        "training__zeroStage": zero,
        "training__globalBatchSize": BATCH,
        "training__microBatchSize": 2,
        "training__steps": STEPS,
        "training__seed": SEED,
    }
    gang = make_gang(config=make_finetune_job(server, make_finetune_spec(base, examples, **changes)))
    prepared, _ = finish(gang)
    dataset = server.bucket / parse_s3_uri(prepared.proposal.dataset.uri)[1]
    data = ExampleDataset(dataset, SEED, BATCH)
    found = losses(gang)
    settings = {
        "base": str(base),
        "examples": str(examples),
        "order": [row for step in range(STEPS) for row in data.rows(step)],
        "method": method,
        "rank": 4,
        "learningRate": 0.01,
        "warmupSteps": round(0.03 * STEPS),
        "steps": STEPS,
        "microBatchSize": 2,
        "accumulationSteps": BATCH // 2 // ranks,
        "seed": SEED,
    }
    expected = plain(settings, ranks, tmp_path)
    assert len(expected) == len(found) == STEPS
    assert max(abs(found[step + 1] - loss) for step, loss in enumerate(expected)) < 1e-4
    assert expected[-1] < expected[0] - 0.03, "it learns"
