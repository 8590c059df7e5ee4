"""Slot 0 proposes the newest checkpoint that verifies, names what it rejects, and refuses what it must not touch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from gang_harness import BUCKET, Gang, S3Server, make_job, make_spec, s3_server

from trireme.protocol import AgentState, DatasetRef, JobConfig, Phase, ResumePoint, Target
from trireme_trainer.agent.preparation import PreparationResult
from trireme_trainer.checkpoint.inventory import ResumeRecord
from trireme_trainer.pretrain.prepare import prepare

SPEC: dict[str, Any] = {
    "training__steps": 30,
    "checkpoint__intervalSteps": 10,
    "workers__nodes": 1,
    "workers__devicesPerNode": 2,
    "parallelism__tensor": 2,
    "checkpoint__keep": 3,
}


@dataclass
class Trained:
    """A finished job with checkpoints of steps 10, 20 and 30, in a store that each test may damage."""

    server: S3Server
    config: JobConfig
    dataset: DatasetRef
    scratch: Path

    def step(self, number: int) -> Path:
        job = self.config.job
        return self.server.bucket / "jobs" / job.namespace / job.name / job.uid / "a1" / f"step-{number}"

    def shard(self, number: int) -> Path:
        """The largest file of a checkpoint."""
        return max(
            (p for p in self.step(number).iterdir() if p.name != "manifest.json"), key=lambda p: p.stat().st_size
        )

    def propose(self, config: JobConfig | None = None, attempt: int = 2, **fields: Any) -> PreparationResult:
        self.server.settle()
        config = config or self.config
        fields.setdefault("dataset", self.dataset if config is self.config else None)
        target = Target(job_uid=config.job.uid, attempt=attempt, phase=Phase.PREPARE, **fields)
        return prepare(config, target, self.scratch)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[S3Server, JobConfig, DatasetRef, Path]]:
    root = tmp_path_factory.mktemp("trained")
    with s3_server(root / "s3") as server:
        gang = Gang(make_job(server, make_spec(**SPEC)), root / "gang", server, 9)
        gang.settings = gang.settings.model_copy(update={"checkpoint_interval_steps": 10, "keep": 3})
        try:
            gang.start_all()
            prepared = gang.form()
            gang.wait_state(AgentState.SUCCEEDED)
            gang.release()
        finally:
            gang.close()
        assert prepared.proposal is not None
        assert [p.parent.name for p in gang.manifests()] == ["step-10", "step-20", "step-30"]
        shutil.copytree(server.bucket, root / "copy")
        yield server, gang.config, prepared.proposal.dataset, root / "copy"


@pytest.fixture
def trained(
    original: tuple[S3Server, JobConfig, DatasetRef, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Trained:
    server, config, dataset, copy = original
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    shutil.rmtree(server.bucket)
    shutil.copytree(copy, server.bucket)
    return Trained(server, config, dataset, tmp_path / "scratch")


def flip_a_byte(trained: Trained) -> str:
    shard = trained.shard(30)
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    return shard.name


def truncate(trained: Trained) -> str:
    shard = trained.shard(30)
    shard.write_bytes(shard.read_bytes()[:-1])
    return shard.name


def delete(trained: Trained) -> str:
    shard = trained.shard(30)
    shard.unlink()
    return shard.name


def swap(trained: Trained) -> str:
    """The files of two ranks change places. Rank 0 has the norms besides, so that each has the other's size."""
    first, second = sorted(trained.step(30).glob("shard-*"))
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    return first.name


def put_older(trained: Trained) -> str:
    """The same file of the checkpoint before takes a file's place: whole, of the same size, and wrong."""
    new, old = trained.shard(30), trained.shard(20)
    assert new.stat().st_size == old.stat().st_size
    new.write_bytes(old.read_bytes())
    return new.name


def remove_manifest(trained: Trained) -> str:
    (trained.step(30) / "manifest.json").unlink()
    return "manifest.json"


def garble_manifest(trained: Trained) -> str:
    (trained.step(30) / "manifest.json").write_text("{}")
    return "manifest.json"


def committed(trained: Trained, step: int) -> ResumePoint:
    """What the operator recorded of it."""
    uri = f"s3://{BUCKET}/{trained.step(step).relative_to(trained.server.bucket)}"
    return ResumePoint(uri=uri, manifest_digest="sha256:" + "0" * 64, step=step, attempt=1)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip_a_byte, "DigestMismatch"),
        (truncate, "SizeMismatch"),
        (delete, "ShardMissing"),
        (swap, "SizeMismatch"),
        (put_older, "DigestMismatch"),
        (remove_manifest, "ManifestMissing"),
        (garble_manifest, "ManifestInvalid"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_the_file_is_named(
    trained: Trained, damage: Callable[[Trained], str], reason: str
) -> None:
    file = damage(trained)
    result = trained.propose(verified=committed(trained, 30))
    assert result.proposal is not None, result.problem
    assert result.proposal.resume is not None
    assert result.proposal.resume.step == 20
    (rejected,) = result.proposal.rejected
    assert (rejected.step, rejected.reason, rejected.file) == (30, reason, file)


def test_all_damaged_is_final_and_never_a_start_from_nothing(trained: Trained) -> None:
    for step in (10, 20, 30):
        trained.shard(step).unlink()
    problem = trained.propose().problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("AllCheckpointsCorrupt", False)
    for step in (10, 20, 30):
        shutil.rmtree(trained.step(step))
    problem = trained.propose(verified=committed(trained, 30)).problem
    assert problem is not None
    assert problem.reason == "AllCheckpointsCorrupt"


@pytest.mark.parametrize("damage", [b"", b"{not json", None])
def test_a_lost_or_damaged_resume_record_loses_no_checkpoint(trained: Trained, damage: bytes | None) -> None:
    record = trained.step(30).parent / "resume.json"
    record.unlink()
    if damage is not None:
        record.write_bytes(damage)
    proposal = trained.propose(verified=committed(trained, 30)).proposal
    assert proposal is not None
    assert proposal.resume is not None
    assert proposal.resume.step == 30
    assert proposal.rejected == []


def test_an_attempt_that_cannot_be_placed_is_named_and_never_a_start_from_nothing(trained: Trained) -> None:
    for step in (10, 20, 30):  # as written before manifests said where their attempt began
        path = trained.step(step) / "manifest.json"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "began"}))
    (trained.step(30).parent / "resume.json").write_text("{")
    problem = trained.propose().problem
    assert problem is not None
    assert problem.reason == "AllCheckpointsCorrupt"
    assert "a1: resume.json: RecordInvalid" in problem.message


def test_without_a_good_checkpoint_of_its_own_a_job_goes_back_to_the_one_it_resumed(trained: Trained) -> None:
    again = make_job(trained.server, make_spec(**{**SPEC, "training__steps": 60}))
    inherited = committed(trained, 20)
    own = trained.step(30).parents[2] / again.job.uid / "a1"
    own.mkdir(parents=True)
    (own / "resume.json").write_text(ResumeRecord(attempt=1, resume_from=inherited).to_json())
    (own / "step-40").mkdir()
    (own / "step-40" / "manifest.json").write_text("damaged")
    proposal = trained.propose(again, attempt=2).proposal
    assert proposal is not None
    assert proposal.resume is not None
    assert proposal.resume.uri == inherited.uri
    assert [(r.step, r.reason) for r in proposal.rejected] == [(40, "ManifestInvalid")]


@pytest.mark.parametrize("left", ["all", "resume record", "checkpoints"])
def test_an_attempt_that_began_before_is_reported_and_not_prepared_again(trained: Trained, left: str) -> None:
    attempt = trained.step(30).parent
    if left == "checkpoints":
        (attempt / "resume.json").unlink()
    elif left == "resume record":
        for number in (10, 20, 30):
            shutil.rmtree(trained.step(number))
    problem = trained.propose(attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable, problem.attempt_in_store) == ("AttemptInStore", True, 1)
    newer = attempt.parent / "a7"
    newer.mkdir()
    (newer / "resume.json").write_text(ResumeRecord(attempt=7).to_json())
    problem = trained.propose(attempt=2).problem
    assert problem is not None
    assert problem.attempt_in_store == 7


def test_a_save_cut_short_is_passed_over_without_a_word(trained: Trained) -> None:
    (trained.step(40)).mkdir()
    (trained.step(40) / "shard").write_bytes(b"x")
    proposal = trained.propose().proposal
    assert proposal is not None
    assert proposal.resume is not None
    assert proposal.resume.step == 30
    assert proposal.rejected == []


def test_a_job_created_again_resumes_or_refuses_as_told(trained: Trained) -> None:
    again = make_job(trained.server, make_spec(**SPEC))
    proposal = trained.propose(again, attempt=1).proposal
    assert proposal is not None
    assert proposal.resume is not None
    assert proposal.resume.step == 30
    assert trained.config.job.uid in proposal.resume.uri
    before = sorted(trained.server.bucket.rglob("step-*"))
    refused = make_job(trained.server, make_spec(**SPEC, checkpoint__onExisting="refuse"))
    problem = trained.propose(refused, attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("CheckpointExists", False)
    assert sorted(trained.server.bucket.rglob("step-*")) == before


def test_a_checkpoint_of_another_model_or_of_other_data_is_refused(trained: Trained) -> None:
    spec = make_spec(**SPEC)
    spec["model"]["shape"]["hidden_size"] = 64
    problem = trained.propose(make_job(trained.server, spec), attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("CheckpointOfAnotherModel", False)
    spec = make_spec(**SPEC)
    spec["data"]["sources"][0]["include"] = ["json/*.py"]
    problem = trained.propose(make_job(trained.server, spec), attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("DatasetMismatch", False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 64, "head_dim": 8}, "hidden_size 64, here 32"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 32.0}}, "rope_type 'llama3'"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not llama"),
        ({"rope_scaling": "none"}, "not a Llama config"),
    ],
)
def test_a_model_from_elsewhere_of_another_shape_is_refused_before_any_work(
    trained: Trained, change: dict[str, Any], said: str
) -> None:
    exported = json.loads((trained.step(10).parents[1] / "model" / "a1" / "config.json").read_text())
    elsewhere = trained.server.bucket / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "config.json").write_text(json.dumps({**exported, **change}))
    spec = make_spec(model__startFrom=f"s3://{BUCKET}/elsewhere")
    problem = trained.propose(make_job(trained.server, spec, name="fresh"), attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("CheckpointOfAnotherModel", False)
    assert said in problem.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training__seed": 7}, "training.seed is 0 there, 7 here"),
        ({"training__globalBatchSize": 16}, "training.globalBatchSize is 8 there, 16 here"),
        ({"training__optimizer": {"learningRate": 1e-5}}, "training.optimizer.learningRate is 0.003 there, 1e-05 here"),
        ({"training__steps": 25}, "it is of step 30, this job's run has 25 steps"),
    ],
)
def test_a_job_created_again_with_other_training_settings_is_refused(
    trained: Trained, changes: dict[str, Any], said: str
) -> None:
    problem = trained.propose(make_job(trained.server, make_spec(**{**SPEC, **changes})), attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("CheckpointOfOtherTraining", False)
    assert said in problem.message


@pytest.mark.parametrize("begin", ["model/a1", "a1/step-30"])
def test_weights_to_start_from_bring_their_tokenizer(trained: Trained, begin: str) -> None:
    root = trained.step(30).parents[1]
    uri = f"s3://{BUCKET}/{(root / begin).relative_to(trained.server.bucket)}"
    stdlib = str(Path(json.__file__).parent.parent)
    other = {"data__sources": [{"uri": stdlib, "include": ["csv.py"]}], "data__validation": None}
    spec = make_spec(model__startFrom=uri, **other)
    proposal = trained.propose(make_job(trained.server, spec, name=begin[0] * 3), attempt=1).proposal
    assert proposal is not None
    prepared = trained.server.bucket / proposal.dataset.uri.removeprefix(f"s3://{BUCKET}/")
    original = root / "data" / trained.dataset.digest.removeprefix("sha256:")
    assert (prepared / "tokenizer" / "tokenizer.json").read_bytes() == (
        original / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_weights_to_start_from_without_a_tokenizer_are_refused(trained: Trained) -> None:
    bare = trained.server.bucket / "bare"
    bare.mkdir()
    shutil.copy(trained.step(10).parents[1] / "model" / "a1" / "config.json", bare)
    spec = make_spec(model__startFrom=f"s3://{BUCKET}/bare")
    problem = trained.propose(make_job(trained.server, spec, name="fresh"), attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("TokenizerUnusable", False)
    assert "spec.data.tokenizer.uri" in problem.message


@pytest.mark.parametrize(
    ("changes", "reason", "retryable"),
    [
        ({"checkpoint__uri": "s3://no-such-bucket/x"}, "BucketNotFound", True),
        ({"data__sources": [{"uri": "/no/such/place"}]}, "DataNotFound", True),
        ({"data__sources": [{"uri": "s3://bucket/nothing-here"}]}, "DataNotFound", True),
        ({"data__sources": [{"uri": "s3://no-such-bucket/x"}]}, "BucketNotFound", True),
    ],
)
def test_inputs_that_are_missing_are_named_and_nothing_is_stored_but_the_owner(
    trained: Trained, changes: dict[str, Any], reason: str, retryable: bool
) -> None:
    config = make_job(trained.server, make_spec(**changes), name="fresh")
    problem = trained.propose(config, attempt=1).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == (reason, retryable)
    stored = [p.name for p in (trained.server.bucket / "jobs" / "default").glob("fresh/**/*") if p.is_file()]
    assert stored in ([], ["owner.json"])


def test_data_in_the_store_is_prepared_as_data_on_disk_is(trained: Trained, tmp_path: Path) -> None:
    texts = {
        "a.txt": "the words of one document " * 30,
        "deep/b.jsonl": json.dumps({"text": "of another " * 30}) + "\n",
    }
    tokens = []
    for root, uri in ((tmp_path / "texts", str(tmp_path / "texts")), (trained.server.bucket / "in", "s3://bucket/in")):
        for name, text in texts.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        spec = make_spec(data__sources=[{"uri": uri}], data__validation=None)
        result = trained.propose(make_job(trained.server, spec, name=root.name), attempt=1)
        assert result.proposal is not None, result.problem
        assert result.proposal.resume is None
        assert result.proposal.dataset.documents == 2
        tokens.append(result.proposal.dataset.tokens)
    assert tokens[0] == tokens[1]


def test_wrong_credentials_and_an_absent_server_are_told_apart(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    problem = trained.propose().problem
    assert problem is not None
    assert problem.reason == "AccessDenied"
    nowhere = trained.config.model_copy(
        update={"store": trained.config.store.model_copy(update={"endpoint": "http://127.0.0.1:1"})}
    )
    problem = trained.propose(nowhere).problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("StoreUnavailable", True)


def test_a_prefix_that_another_job_owns_is_refused(trained: Trained) -> None:
    owner = trained.step(10).parent.parent / "owner.json"
    owner.write_text(json.dumps({"uid": "someone-else"}))
    problem = trained.propose().problem
    assert problem is not None
    assert (problem.reason, problem.retryable) == ("StoreOwnedByAnotherJob", False)
