"""The outer loop with an engine of a few lines: what is saved, agreed on, restored and never committed."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from trireme.checkpoints import Manifest, ShardFile
from trireme.protocol import JobConfig, JobIdentity, Section, Settings, StoreConfig
from trireme.protocol.base import WireModel
from trireme_storage.store import hash_file
from trireme_trainer.agent.messages import (
    ExportedEvent,
    Inputs,
    NewSettings,
    ProgressEvent,
    SavedEvent,
    SaveFailedEvent,
)
from trireme_trainer.data.prepare import Preparation
from trireme_trainer.engines.interface import (
    EngineConfig,
    EvaluationResult,
    ExportResult,
    LoadedState,
    NonFiniteState,
    SaveResult,
    StepResult,
    TokenBatch,
)
from trireme_trainer.metrics.memory import peak_memory_bytes
from trireme_trainer.metrics.parts import PartClock
from trireme_trainer.metrics.throughput import Peak, Throughput, device_peak
from trireme_trainer.pretrain.config import PretrainConfig
from trireme_trainer.pretrain.loop import Pretraining
from trireme_trainer.rank.errors import NaNLoss, RestoreFailed
from trireme_trainer.rank.run import Outcome, Place

STEPS = 12


@dataclass
class Clock:
    """Seconds that only the engine's work adds to."""

    now: float = 0.0
    step_seconds: float = 4.0
    save_seconds: float = 2.0

    def __call__(self) -> float:
        return self.now


class CountingEngine:
    """Its one weight is a running hash of the tokens it saw, so that any change of order or state shows in the loss."""

    def __init__(
        self, config: EngineConfig, clock: Clock, nan_at: int | None = None, full_at: int | None = None
    ) -> None:
        self.config = config
        self.parts = PartClock("cpu")
        self.clock = clock
        self.weight = 1
        self._step = 0
        self._nan_at = nan_at
        self._full_at = full_at

    def setup(self) -> None: ...

    @property
    def step(self) -> int:
        return self._step

    data_parallel_rank = 0
    data_parallel_size = 1
    flops_per_token = 1e6
    parameters = 1

    def train_step(self, batch: TokenBatch, vote: Callable[[], int] = lambda: 0) -> StepResult:
        if self._step == self._nan_at:
            return StepResult(self._step, math.nan, 1.0, 0.1, 1, True, True)
        self.clock.now += self.clock.step_seconds
        agreed = vote()
        self.weight = (self.weight * 31 + int(batch.tokens.sum())) % 1_000_003
        self._step += 1
        loss, tokens = float(self.weight), batch.tokens.size
        return StepResult(self._step, loss, 1.0, 0.1 / self._step, tokens, False, False, agreed)

    def evaluate(self, batches: Iterable[TokenBatch]) -> EvaluationResult:
        tokens = sum(b.tokens.size for b in batches)
        return EvaluationResult(float(self.weight), tokens)

    def save_local(self, directory: Path, extra_state: Mapping[str, Any]) -> SaveResult:
        if self._step == self._full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.clock.now += self.clock.save_seconds
        directory.mkdir(parents=True, exist_ok=True)
        state = {"weight": self.weight, "step": self._step, "extra": dict(extra_state)}
        (directory / "state.json").write_text(json.dumps(state))
        return SaveResult(self._step, ("state.json",), 1, 0.0, 0.0)

    def load_local(self, directory: Path) -> LoadedState:
        state = json.loads((directory / "state.json").read_text())
        self.weight, self._step = state["weight"], state["step"]
        return LoadedState(self._step, state["extra"])

    def start_from(self, directory: Path) -> None:
        self.weight = json.loads((directory / "state.json").read_text())["weight"]

    @property
    def adam_step(self) -> int:
        return self._step

    def export_hugging_face(self, directory: Path, tokenizer_directory: Path | None = None) -> ExportResult:
        assert tokenizer_directory is not None
        assert (tokenizer_directory / "tokenizer.json").exists()
        return ExportResult((), 1)

    def agree(self, flag: int) -> int:
        return flag

    def barrier(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Agent:
    """The other end of the channel."""

    drain_at: int | None = None
    drain_requested: bool = False
    checkpoint_busy: bool = False
    stays_busy: bool = False
    events: list[WireModel] = field(default_factory=list)
    sections: list[tuple[Section, int]] = field(default_factory=list)
    settings: NewSettings | None = None

    def send(self, message: WireModel) -> None:
        self.events.append(message)

    def alive(self) -> None: ...

    def enter(self, section: Section, step: int) -> None:
        self.sections.append((section, step))
        if section is Section.STEP and step + 1 == self.drain_at:  # asked for while that step is computed
            self.drain_requested = True

    def expect_upload(self) -> None:
        self.checkpoint_busy = self.stays_busy

    def take_settings(self) -> NewSettings | None:
        settings, self.settings = self.settings, None
        return settings

    def of(self, kind: type[Any]) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind)]

    @property
    def losses(self) -> dict[int, float | None]:
        return {e.progress.step: e.progress.loss for e in self.of(ProgressEvent)}


@dataclass
class World:
    """One prepared job."""

    config: PretrainConfig
    dataset: Path
    root: Path
    runs: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    def run(
        self, agent: Agent, *, resume: Path | None = None, nan_at: int | None = None, full_at: int | None = None,
        start: Path | None = None, **settings: Any,
    ) -> Outcome:  # fmt: skip
        place = Place(0, 0, 1, 1, self.root / f"run-{next(self.runs)}")
        clock = Clock()
        loop = Pretraining(
            self.config,
            CountingEngine(self.config.engine, clock, nan_at, full_at),
            agent,
            place,
            Inputs(
                dataset_directory=str(self.dataset),
                checkpoint_directory=str(resume) if resume else None,
                weights={"model": str(start)} if start else {},
            ),
            Settings(**settings),
            Peak(1.0, "measured-cpu"),
            clock,
        )
        return loop.run()

    def commit(self, saved: SavedEvent) -> Path:
        """The node's verified copy of a checkpoint."""
        directory = Path(saved.directory)
        size, sha256 = hash_file(directory / "state.json")
        file = ShardFile(path="state.json", bytes=size, sha256=sha256)
        manifest = Manifest.model_validate({**(saved.manifest or {}), "jobUid": "u", "attempt": 1, "files": [file]})
        directory.with_suffix(".manifest.json").write_bytes(manifest.encode())
        return directory


@pytest.fixture
def world(tmp_path: Path) -> World:
    text = tmp_path / "text"
    text.mkdir()
    for number in range(20):
        (text / f"{number}.txt").write_text(f"{number} some words to learn by heart " * 40)
    spec = {
        "model": {"shape": {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
                            "num_attention_heads": 2}},
        "data": {"sources": [{"uri": str(text)}], "sequenceLength": 16, "validation": {"fraction": 0.2}},
        "training": {"globalBatchSize": 4, "steps": STEPS, "precision": "fp32", "microBatchSize": 4},
        "workers": {"nodes": 1, "devicesPerNode": 1, "accelerator": {"kind": "cpu"}},
        "checkpoint": {"uri": "s3://bucket/jobs"},
    }  # fmt: skip
    plan = {
        "tensor": 1, "pipeline": 1, "data": 1, "microBatchSize": 4, "accumulationSteps": 1, "recompute": "none",
        "distributedOptimizer": False, "zeroStage": 0, "parameters": 1, "parametersPerDevice": 1,
        "paddedVocabSize": 300, "bubbleRatio": 0.0, "accelerator": "cpu", "rule": "",
        "memory": {"weightsBytes": 0, "gradientsBytes": 0, "optimizerBytes": 0, "activationsBytes": 0,
                   "logitsBytes": 0, "overheadBytes": 0, "totalBytes": 0},
    }  # fmt: skip
    job = JobConfig(
        protocol="1.0", job=JobIdentity(kind="PretrainJob", namespace="n", name="j", uid="u"), program="pretrain",
        spec=spec, plan=plan, slots=1, ranks_per_slot=1, store=StoreConfig(uri="s3://bucket/jobs"),
    )  # fmt: skip
    config = PretrainConfig.parse(job)
    index = Preparation(config.data, job.store, tmp_path / "prepared").run()
    place = tmp_path / index.to_ref("").digest.removeprefix("sha256:")
    (tmp_path / "prepared").rename(place)
    return World(config, place, tmp_path)


def test_a_run_that_drained_and_resumed_equals_one_that_did_not(world: World) -> None:
    whole = Agent()
    assert world.run(whole) is Outcome.FINISHED
    for cut in (1, 5, STEPS - 1):
        first, second = Agent(drain_at=cut), Agent()
        assert world.run(first) is Outcome.DRAINED
        (saved,) = first.of(SavedEvent)
        assert saved.step == cut
        assert world.run(second, resume=world.commit(saved)) is Outcome.FINISHED
        assert {**first.losses, **second.losses} == whole.losses
        assert second.of(ProgressEvent)[-1].progress.first_loss == whole.losses[1]


def test_a_finished_run_saves_validates_and_exports_once(world: World) -> None:
    agent = Agent()
    world.run(agent, checkpoint_interval_steps=5)
    assert [e.step for e in agent.of(SavedEvent)] == [5, 10, STEPS]
    (exported,) = agent.of(ExportedEvent)
    assert exported.manifest["step"] == STEPS
    validated = agent.of(ProgressEvent)[-1].progress.validation_loss
    assert validated is not None
    state = exported.manifest["state"]
    assert (state["validationLoss"], state["validationStep"]) == (validated, STEPS)
    assert [s for s, _ in agent.sections][-4:] == [Section.SAVE, Section.EVALUATE, Section.EXPORT, Section.DONE]
    again = Agent()
    world.run(again, resume=world.commit(agent.of(SavedEvent)[-1]))
    assert again.of(SavedEvent) == []
    assert again.of(ExportedEvent)[0].manifest["state"] == state
    assert again.of(ProgressEvent)[-1].progress.validation_loss == validated


def test_a_validation_that_fails_at_the_end_loses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> EvaluationResult:
        raise RuntimeError("out of memory")

    agent, again = Agent(), Agent()
    with monkeypatch.context() as patched:
        patched.setattr(CountingEngine, "evaluate", fail)
        with pytest.raises(RuntimeError):
            world.run(agent)
    (saved,) = agent.of(SavedEvent)
    assert saved.step == STEPS
    assert world.run(again, resume=world.commit(saved)) is Outcome.FINISHED
    (progress,) = (e.progress for e in again.of(ProgressEvent))
    assert (progress.step, progress.loss) == (STEPS, agent.losses[STEPS])
    assert progress.validation_loss is not None


@pytest.mark.parametrize("full_at", [None, 5])
def test_no_rank_leaves_a_save_before_all_have_written(
    world: World, monkeypatch: pytest.MonkeyPatch, full_at: int | None
) -> None:
    agent = Agent()
    met = []

    def barrier(_: CountingEngine) -> None:
        met.append((agent.sections[-1], len(agent.of(SavedEvent) + agent.of(SaveFailedEvent))))

    monkeypatch.setattr(CountingEngine, "barrier", barrier)
    world.run(agent, full_at=full_at, checkpoint_interval_steps=5)
    # What this rank wrote is on its way to the store while it waits for the others.
    assert met[:3] == [((Section.SAVE, 5), 1), ((Section.SAVE, 10), 2), ((Section.SAVE, STEPS), 3)]


def test_a_save_waits_while_the_one_before_is_on_its_way(world: World) -> None:
    agent = Agent(stays_busy=True)
    world.run(agent, checkpoint_interval_steps=2)
    assert [e.step for e in agent.of(SavedEvent)] == [2, STEPS]


def test_a_full_disk_fails_the_save_and_not_the_training(world: World) -> None:
    agent = Agent()
    assert world.run(agent, full_at=5, checkpoint_interval_steps=5) is Outcome.FINISHED
    (failed,) = agent.of(SaveFailedEvent)
    assert (failed.step, failed.reason) == (5, "DiskFull")
    assert [e.step for e in agent.of(SavedEvent)] == [10, STEPS]


def test_weights_that_are_not_finite_end_the_run_and_are_not_saved(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> SaveResult:
        raise NonFiniteState("w@0 holds 1 numbers that are not finite")

    monkeypatch.setattr(CountingEngine, "save_local", refuse)
    agent = Agent()
    with pytest.raises(NaNLoss, match="checkpoint of step 5: w@0"):
        world.run(agent, checkpoint_interval_steps=5)
    assert agent.of(SavedEvent) == agent.of(SaveFailedEvent) == []


def test_peak_memory_is_the_devices_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    assert peak_memory_bytes("cuda") == 123
    assert peak_memory_bytes("cpu") > 10 << 20


def test_starting_weights_are_taken_without_their_step_or_optimizer(world: World) -> None:
    first = Agent(drain_at=3)
    world.run(first)
    agent, plain = Agent(), Agent()
    world.run(agent, start=Path(first.of(SavedEvent)[0].directory))
    world.run(plain)
    assert sorted(agent.losses) == list(range(1, STEPS + 1))
    assert agent.losses != plain.losses


def test_saves_by_seconds_follow_the_clock(world: World) -> None:
    agent = Agent()
    world.run(agent, checkpoint_interval_seconds=10)
    # Steps take 4 s: step 3 ends at 12 s, its save at 14 s, and the first step to end 10 s after that is 6, at 26 s.
    assert [e.step for e in agent.of(SavedEvent)] == [3, 6, 9, STEPS]


def test_a_loss_that_is_no_number_is_never_saved(world: World) -> None:
    agent = Agent()
    with pytest.raises(NaNLoss, match="step 5"):
        world.run(agent, nan_at=4, checkpoint_interval_steps=5)
    assert [e.step for e in agent.of(SavedEvent)] == []


@pytest.mark.parametrize("damage", ["flip", "seed", "missing"])
def test_a_node_that_finds_its_copy_wrong_does_not_train(world: World, damage: str) -> None:
    first = Agent(drain_at=3)
    world.run(first)
    directory = world.commit(first.of(SavedEvent)[0])
    state = directory / "state.json"
    if damage == "flip":
        state.write_text(state.read_text().replace('"weight": ', '"weight":  '))
    elif damage == "missing":
        state.unlink()
    else:
        content = json.loads(state.read_text())
        content["extra"]["seed"] = 99
        state.write_text(json.dumps(content))
        world.commit(first.of(SavedEvent)[0])
    agent = Agent()
    with pytest.raises(RestoreFailed):
        world.run(agent, resume=directory)
    assert agent.of(ProgressEvent) == []
    # What does not verify is downloaded again by the next attempt; what verifies would come back the same.
    assert directory.exists() == (damage not in ("flip", "missing"))


def test_mfu_is_the_achieved_share_of_the_peak() -> None:
    peak = device_peak("h100-sxm", "bf16")
    assert peak is not None
    # An 8e9-parameter model at 6 FLOP per parameter and token, 10,000 tokens per second and device.
    rates = Throughput(6 * 8e9, 80_000, world_size=8, peak=peak).step(1.0)
    assert rates.tokens_per_second == pytest.approx(80_000)
    assert rates.tflops_per_device == pytest.approx(480)
    assert rates.mfu == pytest.approx(480 / 989)
    assert rates.mfu_basis == "h100-sxm"
    assert device_peak("cpu", "fp32") is None
