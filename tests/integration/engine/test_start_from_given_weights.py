from __future__ import annotations

from pathlib import Path

import pytest
from engine_gang import GangFailed, Gangs, download, engine_config


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_checkpoint_and_its_export_give_the_same_start_under_any_layout(
    gangs: Gangs, tmp_path: Path, precision: str
) -> None:
    config = engine_config(precision=precision, model={"tie_word_embeddings": precision == "bf16"})
    before = gangs.run(
        (2, 2, 1),
        [
            {"do": "train", "steps": 3},
            {"do": "save", "directory": str(tmp_path / "saved")},
            {"do": "evaluate"},
            {"do": "export", "directory": str(tmp_path / "model")},
        ],
        config,
    )
    checkpoint = download(before, tmp_path / "checkpoint")
    expected = before[0]["evaluation"]["loss"]
    losses = []
    for directory in (checkpoint, tmp_path / "model"):
        actions = [{"do": "start", "directory": str(directory)}, {"do": "evaluate"}, {"do": "train", "steps": 2}]
        seen = gangs.run((1, 1, 2), actions, config)[0]
        assert seen["evaluation"]["step"] == 0
        assert seen["evaluation"]["loss"] == pytest.approx(expected, abs=1e-5 if precision == "fp32" else 5e-3)
        assert [step["adam_step"] for step in seen["steps"]] == [1, 2]
        losses.append([step["loss"] for step in seen["steps"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6 if precision == "fp32" else 5e-3)


def test_a_directory_without_a_model_is_refused(gangs: Gangs, tmp_path: Path) -> None:
    with pytest.raises(GangFailed, match="holds neither"):
        gangs.run((1, 1, 1), [{"do": "start", "directory": str(tmp_path)}])
