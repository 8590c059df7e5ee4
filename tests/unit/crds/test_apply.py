"""What the schema and its rules take and refuse at apply; the models agree with them."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from crd_evaluator import refusals, rule_refusals, with_defaults

from trireme.planning import plan
from trireme.resources import (
    FINETUNE_JOB,
    INFERENCE_SERVICE,
    PRETRAIN_JOB,
    RLHF_JOB,
    KindInfo,
    SpecError,
    all_kinds,
    kind_named,
)
from trireme.resources.crdgen import crd
from trireme.resources.pretrain import plan_request

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = crd(PRETRAIN_JOB)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
FINETUNE_SCHEMA = crd(FINETUNE_JOB)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
RLHF_SCHEMA = crd(RLHF_JOB)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
EXAMPLE = ROOT / "examples" / "pretrain.yaml"


def smallest(info: KindInfo[Any]) -> str:
    """A kind's page shows its smallest useful manifest; it is the one tested here."""
    return (ROOT / "docs" / f"{info.singular}.md").read_text().partition("```yaml\n")[2].partition("```")[0]


SMALLEST = smallest(PRETRAIN_JOB)


def manifest(text: str = SMALLEST) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def put(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of the document with the value at a dotted path; None removes what is there."""
    changed = copy.deepcopy(document)
    *parents, last = path.split(".")
    node = changed
    for part in parents:
        node = node.setdefault(part, {})
    if value is None:
        node.pop(last)
    else:
        node[last] = value
    return changed


def test_smallest_useful_manifest_is_accepted_and_under_25_lines() -> None:
    assert SMALLEST.count("\n") < 25
    assert refusals(SCHEMA, manifest()) == []
    assert plan(plan_request(PRETRAIN_JOB.parse(manifest()["spec"]))).world_size == 64


def test_example_is_accepted_and_planned_as_tensor_2_pipeline_2() -> None:
    document = manifest(EXAMPLE.read_text())
    assert refusals(SCHEMA, document) == []
    chosen = plan(plan_request(PRETRAIN_JOB.parse(document["spec"])))
    assert (chosen.tensor, chosen.pipeline, chosen.data) == (2, 2, 1)
    assert chosen.parameters >= 2_000_000


REFUSED = [
    (
        "spec.model.shape",
        {
            "vocab_size": 1024,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
        "exactly one of preset and shape",
    ),
    ("spec.model.preset", None, "exactly one of preset and shape"),
    ("spec.model.preset", "gpt-5", "gpt-5"),
    ("spec.model.family", "mamba", "mamba"),
    (
        "spec.model",
        {"preset": "llama3.2-1b", "startFrom": "s3://models/a", "startFromJob": {"name": "a"}},
        "at most one of startFrom and startFromJob",
    ),
    ("spec.model.startFromJob", {"kind": "Deployment", "name": "a"}, "Deployment"),
    ("spec.model.startFromJob", {"kind": "PretrainJob"}, "name"),
    ("spec.training.steps", 10, "exactly one of steps and tokens"),
    ("spec.training.tokens", None, "exactly one of steps and tokens"),
    ("spec.training.globalBatchSize", 0, "globalBatchSize"),
    ("spec.training.globalBatchSize", None, "globalBatchSize"),
    ("spec.training.precision", "fp8", "fp8"),
    ("spec.training.optimizer", {"learningRate": -1.0}, "learningRate"),
    ("spec.training.optimizer", {"beta2": 1.0}, "beta2"),
    ("spec.training.schedule", {"warmupSteps": 3, "warmupRatio": 0.1}, "at most one of warmupSteps"),
    (
        "spec.training",
        {"globalBatchSize": 8, "steps": 5, "schedule": {"warmupSteps": 6}},
        "warmupSteps must not exceed steps",
    ),
    ("spec.training.schedule", {"minLearningRate": 0.5}, "minLearningRate must not exceed optimizer.learningRate"),
    ("spec.training.microBatchSize", "big", "microBatchSize"),
    ("spec.data.sources", [], "sources"),
    ("spec.data.sources", [{"uri": "https://example.org/x"}], "uri"),
    ("spec.data.sources", [{"uri": "s3://corpus/x", "weight": 0}], "weight"),
    ("spec.data.validation", {}, "exactly one of fraction and sources"),
    ("spec.data.validation", {"fraction": 0.6}, "fraction"),
    ("spec.data.sequenceLenght", 2048, "sequenceLenght"),
    ("spec.parallelism.tensor", 0, "tensor"),
    ("spec.parallelism.tensor", "all", "tensor"),
    ("spec.workers.nodes", 0, "nodes"),
    ("spec.workers.accelerator.kind", "h100", "h100"),
    ("spec.workers.env", [{"name": "RANK", "value": "0"}], "reserved"),
    ("spec.workers.env", [{"name": "TRIREME_SLOT", "value": "0"}], "reserved"),
    ("spec.workers.env", [{"name": "PET_NNODES", "value": "2"}], "reserved"),
    ("spec.workers.volumes", [{"name": "trireme-scratch"}], "reserved"),
    ("spec.workers.volumeMounts", [{"name": "x", "mountPath": "/etc/trireme"}], "reserved"),
    ("spec.workers.resources", {"requests": {"cpu": "lots"}}, "lots"),
    ("spec.checkpoint.uri", "/data/checkpoints", "uri"),
    ("spec.checkpoint.uri", None, "uri"),
    ("spec.checkpoint.endpoint", "store:9000", "endpoint"),
    ("spec.checkpoint.credentials", {}, "exactly one of secretRef and workloadIdentity"),
    ("spec.checkpoint.credentials", {"secretRef": {"name": "a"}, "workloadIdentity": True}, "exactly one of secretRef"),
    ("spec.checkpoint.keep", 0, "keep"),
    ("spec.checkpoint.onExisting", "overwrite", "overwrite"),
    ("spec.faultTolerance.budgets", {"application": -1}, "application"),
]


@pytest.mark.parametrize(("path", "value", "text"), REFUSED, ids=[f"{p}={v}" for p, v, _ in REFUSED])
def test_bad_manifest_is_refused_by_schema_and_model_alike(path: str, value: Any, text: str) -> None:
    document = put(manifest(), path, value)
    found = refusals(SCHEMA, document)
    assert any(text in message for message in found), found
    with pytest.raises(SpecError):
        PRETRAIN_JOB.parse(document["spec"])


REFUSED_FINETUNING = [
    ("spec.base", {}, "exactly one of job and uri"),
    ("spec.base", {"uri": "s3://a/b", "job": {"name": "x"}}, "exactly one of job and uri"),
    ("spec.base", {"job": {"kind": "Deployment", "name": "x"}}, "Deployment"),
    ("spec.method", {"type": "peft"}, "peft must be set for type peft"),
    ("spec.method", {"peft": {"peft_type": "IA3"}}, "peft must be set for type peft"),
    ("spec.method", {"lora": {"rank": 0}}, "rank"),
    ("spec.training", {"steps": 5, "epochs": 1}, "at most one of steps and epochs"),
    ("spec.training", {"zeroStage": 4}, "zeroStage"),
    ("spec.data.chatTemplate", None, "chat only"),
    ("spec.data.validation", {}, "exactly one of fraction and sources"),
    ("spec.task", "poetry", "poetry"),
    ("spec.parallelism", {"tensor": 2}, "parallelism"),
]


@pytest.mark.parametrize(("path", "value", "text"), REFUSED_FINETUNING)
def test_bad_fine_tuning_is_refused_by_schema_and_model_alike(path: str, value: Any, text: str) -> None:
    document = manifest(smallest(FINETUNE_JOB))
    assert refusals(FINETUNE_SCHEMA, document) == []
    if text == "chat only":
        document = put(put(document, path, "x"), "spec.task", "instruction")
    else:
        document = put(document, path, value)
    found = refusals(FINETUNE_SCHEMA, document)
    assert any(text in message for message in found), found
    with pytest.raises(SpecError):
        FINETUNE_JOB.parse(document["spec"])


REWARD = {"name": "a", "pythonSyntax": {}}
PPO = {"algorithm": "ppo", "rewards": [REWARD]}
REFUSED_ALIGNMENT: list[tuple[dict[str, Any], str]] = [
    ({"algorithm": "rloo"}, "rloo"),
    ({"policy": {}}, "exactly one of job and uri"),
    ({"reference": {}}, "exactly one of job and uri"),
    ({"method": {"type": "peft"}}, "peft must be set for type peft"),
    ({"training": {"steps": 5, "epochs": 1}}, "at most one of steps and epochs"),
    ({"rewards": [REWARD]}, "rewards must be set for grpo and ppo"),
    ({"algorithm": "ppo"}, "rewards must be set for grpo and ppo"),
    ({"algorithm": "reward", "reference": {"uri": "/m"}}, "a reward model has none"),
    ({"ppo": {}}, "ppo may be set for algorithm ppo only"),
    ({"dpo": {"labelSmoothing": 0.5}}, "labelSmoothing"),
    ({**PPO, "dpo": {}}, "dpo may be set for algorithm dpo only"),
    ({**PPO, "generation": {"topP": 0.9}}, "topP and topK"),
    ({**PPO, "generation": {"topK": 9}}, "topP and topK"),
    ({**PPO, "method": {"type": "prefix"}}, "virtual tokens"),
    ({**PPO, "rewards": [{"name": "a"}]}, "exactly one of model, regex"),
    ({**PPO, "rewards": [{**REWARD, "regex": {"pattern": "x"}}]}, "exactly one of model, regex"),
    ({**PPO, "rewards": [{"name": "a", "model": {}}]}, "exactly one of job and uri"),
    ({**PPO, "rewards": [{"name": "a", "length": {}}]}, "either target"),
    ({**PPO, "rewards": [{"name": "a", "length": {"target": 1, "min": 1}}]}, "either target"),
    ({**PPO, "rewards": [{"name": "A", "pythonSyntax": {}}]}, "name"),
]


@pytest.mark.parametrize(("changes", "text"), REFUSED_ALIGNMENT)
def test_bad_alignment_is_refused_by_schema_and_model_alike(changes: dict[str, Any], text: str) -> None:
    document = manifest(smallest(RLHF_JOB))
    assert refusals(RLHF_SCHEMA, document) == []
    assert refusals(RLHF_SCHEMA, {**document, "spec": {**document["spec"], **PPO}}) == []
    document["spec"] |= changes
    found = refusals(RLHF_SCHEMA, document)
    assert any(text in message for message in found), found
    with pytest.raises(SpecError):
        RLHF_JOB.parse(document["spec"])


SERVICE_SCHEMA = crd(INFERENCE_SERVICE)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
REFUSED_SERVING = [
    ("spec.model", {}, "exactly one of job and uri"),
    ("spec.model", {"uri": "s3://a/b", "job": {"name": "x"}}, "exactly one of job and uri"),
    ("spec.model", {"job": {"kind": "Deployment", "name": "x"}}, "Deployment"),
    ("spec.adapters", [{"name": "a"}], "exactly one of job and uri must be set for each adapter"),
    ("spec.adapters", [{"name": "a b", "uri": "s3://a/b"}], "name"),
    ("spec.adapters", [{"name": "a", "uri": "s3://a/b"}] * 2, "uplicate"),
    ("spec.servedName", "docstrings", "must not be the model's own"),
    ("spec.adapterLimits", {"rank": 12}, "rank"),
    ("spec.adapterLimits", {"count": 0}, "count"),
    ("spec.task", "embedding", "no adapters can be served for task embedding"),
    ("spec.task", "poetry", "poetry"),
    ("spec.dtype", "int8", "int8"),
    ("spec.replicas", -1, "replicas"),
    ("spec.kvCache", "much", "much"),
    ("spec.extraArgs", ["--port=9000"], "extraArgs must not set"),
    ("spec.extraArgs", ["--trust-remote-code"], "extraArgs must not set"),
    ("spec.extraArgs", ["--middleware=x.Y"], "extraArgs must not set"),
    ("spec.extraArgs", ["port"], "extraArgs"),
    ("spec.extraArgs", ["--trust_remote_code"], "extraArgs"),
    ("spec.pods.env", [{"name": "TRIREME_SERVICE", "value": "{}"}], "reserved"),
    ("spec.pods.volumes", [{"name": "trireme-models"}], "reserved"),
    ("spec.pods.accelerator.kind", "tpu", "tpu"),
    ("spec.store.credentials", {}, "exactly one of secretRef and workloadIdentity"),
    ("spec.cache", {"hostPath": "relative"}, "hostPath"),
]


@pytest.mark.parametrize(("path", "value", "text"), REFUSED_SERVING)
def test_bad_serving_is_refused_by_schema_and_model_alike(path: str, value: Any, text: str) -> None:
    document = manifest(smallest(INFERENCE_SERVICE))
    assert refusals(SERVICE_SCHEMA, document) == []
    document = put(document, path, value)
    found = refusals(SERVICE_SCHEMA, document)
    assert any(text in message for message in found) or text == "uplicate", found
    with pytest.raises(SpecError):
        INFERENCE_SERVICE.parse(document["spec"])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"extraArgs": ["--trust-remote"]}, "sets --trust-remote-code"),
        ({"extraArgs": ["--por=1"]}, "sets --port"),
        ({"kvCache": "4"}, "is the unit missing"),
        ({"chatTemplate": "x", "task": "completion"}, "chat only"),
        ({"adapterLimits": {"count": 1}, "adapters": [{"name": n, "uri": "s3://a/b"} for n in "ab"]}, "count is 1"),
    ],
)
def test_serving_that_the_operator_refuses_says_why(change: dict[str, Any], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        INFERENCE_SERVICE.parse({**manifest(smallest(INFERENCE_SERVICE))["spec"], **change})


def test_flags_of_vllm_that_merely_begin_alike_are_allowed() -> None:
    spec = manifest(smallest(INFERENCE_SERVICE))["spec"]
    allowed = ["--max-num-batched-tokens=512", "--no-enable-prefix-caching", "--compilation-config.level=0"]
    assert INFERENCE_SERVICE.parse({**spec, "extraArgs": allowed}).extra_args == allowed
    document = {**manifest(smallest(INFERENCE_SERVICE)), "spec": {**spec, "extraArgs": allowed}}
    assert refusals(SERVICE_SCHEMA, document) == []


SHAPE = manifest(EXAMPLE.read_text())["spec"]["model"]["shape"]
REFUSED_SHAPES = [
    ({**SHAPE, "num_attention_heads": 7}, "divisible by num_attention_heads"),
    ({**SHAPE, "num_key_value_heads": 3}, "divisible by num_key_value_heads"),
    ({**SHAPE, "max_position_embeddings": 128}, "max_position_embeddings"),
]


@pytest.mark.parametrize(("shape", "text"), REFUSED_SHAPES, ids=[t for _, t in REFUSED_SHAPES])
def test_bad_shape_is_refused_with_the_rule_that_it_breaks(shape: dict[str, Any], text: str) -> None:
    document = put(manifest(EXAMPLE.read_text()), "spec.model.shape", shape)
    assert any(text in message for message in refusals(SCHEMA, document))
    with pytest.raises(SpecError, match=text.split()[-1]):
        PRETRAIN_JOB.parse(document["spec"])


@pytest.mark.parametrize(
    ("name", "accepted"), [("a" * 40, True), ("a" * 41, False), ("llama.8b", False), ("8b", False), ("llama-8b", True)]
)
def test_job_name_must_fit_into_the_names_of_its_pods(name: str, accepted: bool) -> None:
    found = refusals(SCHEMA, put(manifest(), "metadata.name", name))
    assert (found == []) is accepted, found


@pytest.mark.parametrize(("path", "value"), [("parallelism.engine", "deepspeed"), ("parallelism.context", 2)])
def test_what_does_not_exist_yet_is_refused_at_apply(path: str, value: Any) -> None:
    found = refusals(SCHEMA, put(manifest(), f"spec.{path}", value))
    assert any("not available yet" in message for message in found)


def accepted(document: dict[str, Any]) -> dict[str, Any]:
    """The job as it is stored once the operator has accepted it."""
    resolved = {
        "spec": kind_named(document["kind"]).parse(document["spec"]).to_manifest(),
        "plan": {},
        "image": "trainer",
        "protocol": "1",
        "slots": 1,
        "ranksPerSlot": 1,
        "program": "pretrain",
        "at": "2026-01-01T00:00:00Z",
    }
    return {**document, "status": {"resolved": resolved}}


REFUSED_BY_THE_PLANNER = {"conditions": [], "state": "Rejected"}
IMMUTABLE = [
    ("model.preset", "llama3-70b"),
    ("model.startFrom", "s3://runs/other/step-10"),
    ("data.sources", [{"uri": "s3://corpus/other"}]),
    ("data.sequenceLength", 4096),
    ("training.seed", 7),
    ("training.globalBatchSize", 512),
    ("training.optimizer", {"learningRate": 0.01}),
    ("parallelism.tensor", 4),
    ("workers.nodes", 4),
    ("workers.devicesPerNode", 4),
    ("workers.accelerator", {"kind": "a100-80g"}),
    ("workers.image", "registry.example/trainer:2"),
    ("workers.nodeSelector", {"zone": "a"}),
    ("workers.tolerations", [{"operator": "Exists"}]),
    ("workers.resources", {"limits": {"memory": "8Gi"}}),
    ("workers.env", [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}]),
    ("checkpoint.uri", "s3://runs/second"),
    ("checkpoint.endpoint", "http://store:9000"),
    ("checkpoint.credentials", {"secretRef": {"name": "other"}}),
    ("checkpoint.onExisting", "refuse"),
]
MUTABLE = [
    ("suspend", True),
    ("faultTolerance.budgets.application", 9),
    ("faultTolerance.timeouts.fenceSeconds", 60),
    ("checkpoint.keep", 7),
    ("checkpoint.intervalSteps", 100),
    ("checkpoint.intervalSeconds", 60),
    ("ttlSecondsAfterFinished", 60),
    ("activeDeadlineSeconds", 3600),
]


@pytest.mark.parametrize(("path", "value"), IMMUTABLE, ids=[p for p, _ in IMMUTABLE])
def test_what_an_accepted_job_stands_on_cannot_change(path: str, value: Any) -> None:
    old, new = manifest(), put(manifest(), f"spec.{path}", value)
    assert refusals(SCHEMA, new) == []
    assert refusals(SCHEMA, new, accepted(old)) == [f": {path} is immutable once the job is accepted"]
    assert refusals(SCHEMA, old, accepted(new)) == [f": {path} is immutable once the job is accepted"]


@pytest.mark.parametrize(("path", "value"), [*IMMUTABLE, *MUTABLE], ids=[p for p, _ in [*IMMUTABLE, *MUTABLE]])
def test_everything_can_change_until_the_job_is_accepted(path: str, value: Any) -> None:
    new = put(manifest(), f"spec.{path}", value)
    assert refusals(SCHEMA, new, manifest()) == []
    assert refusals(SCHEMA, new, {**manifest(), "status": REFUSED_BY_THE_PLANNER}) == []


@pytest.mark.parametrize(("path", "value"), MUTABLE, ids=[p for p, _ in MUTABLE])
def test_what_steers_an_accepted_job_can_change(path: str, value: Any) -> None:
    old, new = manifest(), put(manifest(), f"spec.{path}", value)
    assert refusals(SCHEMA, new, accepted(old)) == []
    assert refusals(SCHEMA, old, accepted(new)) == []


def test_the_status_of_an_accepted_job_can_change() -> None:
    old = accepted(manifest())
    assert refusals(SCHEMA, {**old, "status": {**old["status"], "state": "Running"}}, old) == []


def leaves(node: dict[str, Any], parent: str = "") -> Iterator[tuple[str, dict[str, Any], bool]]:
    """Every field of a schema that is not divided further, and whether it can be absent."""
    for name, child in node["properties"].items():
        path = f"{parent}.{name}" if parent else name
        if "properties" in child:
            yield from leaves(child, path)
        else:
            yield path, child, "default" not in child and name not in node.get("required", [])


def two_values(node: dict[str, Any]) -> tuple[Any, Any]:
    """Two different values of a field's type; whether its other rules take them does not matter here."""
    made = {
        "array": ([{"a": 1}], [{"a": 2}]),
        "object": ({"a": "1"}, {"a": "2"}),
        "string": ("a", "b"),
        "boolean": (True, False),
        "number": (1.5, 2.5),
    }
    return made.get(node.get("type", ""), (1, 2))


@pytest.mark.parametrize("info", all_kinds(), ids=lambda info: info.kind)
def test_every_field_of_the_spec_is_declared_mutable_or_refused_once_the_job_is_accepted(info: KindInfo[Any]) -> None:
    schema = crd(info)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    rules = {"x-kubernetes-validations": schema["x-kubernetes-validations"]}
    base = with_defaults(schema, accepted(manifest(smallest(info))))
    for path, node, optional in leaves(schema["properties"]["spec"]):
        one, other = (with_defaults(schema, put(base, f"spec.{path}", value)) for value in two_values(node))
        absent = put(one, f"spec.{path}", None)
        mutable = any(f"{path}.".startswith(f"{declared}.") for declared in info.mutable_paths)
        for old, new in [(one, other), *([(one, absent), (absent, one)] if optional else [])]:
            found = [message.split()[1] for message in rule_refusals(rules, new, old, "")]
            assert len(found) == (0 if mutable else 1), path
            assert all(f"{path}.".startswith(f"{field}.") for field in found), (path, found)
