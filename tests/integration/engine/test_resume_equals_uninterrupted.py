from __future__ import annotations

import json
from pathlib import Path

import pytest
from engine_gang import GangFailed, Gangs, Layout, TrainedRuns, download


@pytest.mark.parametrize("layout", [(2, 2, 1), (2, 2, 2)], ids=str)
def test_fresh_processes_continue_exactly(gangs: Gangs, trained: TrainedRuns, tmp_path: Path, layout: Layout) -> None:
    original = trained.of(layout)
    directory = download(original, tmp_path / "restored")
    resumed = gangs.run(
        layout, [{"do": "load", "directory": str(directory)}, {"do": "train", "steps": TrainedRuns.steps - 12}]
    )
    assert resumed[0]["loaded"] == {"step": 12, "extra": {"sampler": {"position": 96}}}
    for step, reference in zip(resumed[0]["steps"], original[0]["steps"][12:], strict=True):
        assert step["step"] == reference["step"]
        assert step["adam_step"] == reference["adam_step"] == step["step"]
        for name in ("loss", "grad_norm", "learning_rate"):
            assert step[name] == pytest.approx(reference[name], abs=1e-5), (step["step"], name)


@pytest.mark.parametrize(("saved_by", "loaded_by"), [((2, 2, 1), (1, 2, 2)), ((2, 2, 2), (1, 1, 1))], ids=str)
def test_a_checkpoint_loads_under_another_layout(
    gangs: Gangs, trained: TrainedRuns, tmp_path: Path, saved_by: Layout, loaded_by: Layout
) -> None:
    original = trained.of(saved_by)
    directory = download(original, tmp_path / "restored")
    resumed = gangs.run(loaded_by, [{"do": "load", "directory": str(directory)}, {"do": "train", "steps": 6}])
    for step, reference in zip(resumed[0]["steps"], original[0]["steps"][12:18], strict=True):
        assert step["loss"] == pytest.approx(reference["loss"], abs=1e-4)
        assert step["grad_norm"] == pytest.approx(reference["grad_norm"], rel=1e-2)
        assert step["adam_step"] == reference["adam_step"]


def test_each_rank_writes_only_its_own_files_and_none_is_a_pickle(trained: TrainedRuns) -> None:
    seen = trained.of((2, 2, 1))
    assert seen[0]["saved"]["files"] == ["shard-00000.safetensors", "index.json"]
    assert [rank["saved"]["files"] for rank in seen[1:]] == [[f"shard-{r:05d}.safetensors"] for r in (1, 2, 3)]
    for rank in seen:
        folder = Path(rank["saved"]["directory"])
        assert {path.suffix for path in folder.iterdir()} <= {".safetensors", ".json"}
        assert rank["saved"]["bytes"] == sum((folder / name).stat().st_size for name in rank["saved"]["files"])
    # fp32 weights and two moments, 12 bytes per parameter, each stored once.
    stored = sum(rank["saved"]["bytes"] for rank in seen)
    assert 12 * 869504 <= stored < 12 * 869504 * 1.05


@pytest.mark.parametrize("damage", ["another model", "lost shard"])
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    gangs: Gangs, trained: TrainedRuns, tmp_path: Path, damage: str
) -> None:
    directory = download(trained.of((1, 1, 1)), tmp_path / "restored")
    if damage == "another model":
        index = json.loads((directory / "index.json").read_text())
        index["state"]["model"]["num_hidden_layers"] = 8
        (directory / "index.json").write_text(json.dumps(index))
        message = "num_hidden_layers 8, here 4"
    else:
        (directory / "shard-00000.safetensors").unlink()
        message = "shard-00000.safetensors is missing"
    with pytest.raises(GangFailed, match=message):
        gangs.run((1, 1, 1), [{"do": "load", "directory": str(directory)}])
