"""The planner's choices: published layouts, refusals with their numbers, and what holds of every plan."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trireme.planning import Plan, PlanError, PlanRequest, plan
from trireme.planning.layouts import layouts
from trireme.planning.memory import GIB
from trireme.planning.shape import PRESETS, LlamaShape


def request(**changes: object) -> PlanRequest:
    """Llama 3 8B on one node of eight H100, changed."""
    return PlanRequest.model_validate(
        {
            "model": PRESETS["llama3-8b"],
            "sequence_length": 8192,
            "global_batch_size": 128,
            "nodes": 1,
            "devices_per_node": 8,
            "accelerator": "h100-sxm",
            **changes,
        }
    )


def small(**changes: object) -> PlanRequest:
    """A small model on CPU ranks, changed."""
    shape = {
        "vocab_size": 2048,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        **{key: changes.pop(key) for key in list(changes) if key in LlamaShape.model_fields},
    }
    base = {"sequence_length": 256, "global_batch_size": 8, "nodes": 2, "devices_per_node": 2, "accelerator": "cpu"}
    return PlanRequest.model_validate({"model": shape, "precision": "fp32", **base, **changes})


# Narayanan et al. 2021 (arXiv:2104.04473), table 1, on A100 80 GB in nodes of eight, sequence 2048, vocabulary 51,200:
# heads, hidden, layers, tensor, pipeline, devices, batch. The largest row's tensor x pipeline is the bound.
MEGATRON_TABLE = [
    (24, 2304, 24, 1, 1, 32, 512),
    (32, 3072, 30, 2, 1, 64, 512),
    (32, 4096, 36, 4, 1, 128, 512),
    (48, 6144, 40, 8, 1, 256, 1024),
    (64, 8192, 48, 8, 2, 512, 1536),
    (80, 10240, 60, 8, 4, 1024, 1792),
    (96, 12288, 80, 8, 8, 1536, 2304),
    (128, 16384, 96, 8, 16, 1920, 2160),
    (128, 20480, 105, 8, 35, 2520, 2520),
    (160, 25600, 128, 8, 64, 3072, 3072),
]


@pytest.mark.parametrize("row", MEGATRON_TABLE, ids=lambda row: f"h{row[1]}")
def test_published_models_need_no_more_model_parallelism_than_published(row: tuple[int, ...]) -> None:
    heads, hidden, layers, tensor, pipeline, devices, batch = row
    shape = LlamaShape(
        vocab_size=51200,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
    )
    chosen = plan(
        request(model=shape, sequence_length=2048, global_batch_size=batch, nodes=devices // 8, accelerator="a100-80g")
    )
    assert chosen.tensor * chosen.pipeline <= tensor * pipeline
    assert chosen.world_size == devices


def test_llama_3_8b_on_one_node_stays_inside_the_node_without_recomputation() -> None:
    chosen = plan(request())
    assert (chosen.tensor, chosen.pipeline, chosen.data, chosen.recompute) == (2, 1, 4, "none")
    assert chosen.zero_stage == 1


def test_what_fits_on_one_device_is_only_replicated() -> None:
    chosen = plan(request(model=PRESETS["llama3.2-1b"], sequence_length=4096))
    assert (chosen.tensor, chosen.pipeline, chosen.data) == (1, 1, 8)


def test_axes_asked_for_are_kept() -> None:
    chosen = plan(small(tensor=2, pipeline=2))
    assert (chosen.tensor, chosen.pipeline, chosen.data) == (2, 2, 1)
    assert "tensor, pipeline as asked" in chosen.rule


def test_too_large_a_model_is_refused_with_the_numbers_and_the_nodes_that_would_do() -> None:
    large = request(model=PRESETS["llama3-70b"])
    with pytest.raises(PlanError) as caught:
        plan(large)
    assert (caught.value.reason, caught.value.field) == ("DoesNotFit", "workers")
    assert "70,553,706,496 parameters" in caught.value.message
    assert "80.0 GiB are there" in caught.value.message
    assert "4 nodes would do" in caught.value.message
    assert plan(large.model_copy(update={"nodes": 4})).world_size == 32
    with pytest.raises(PlanError, match="GiB are there"):
        plan(large.model_copy(update={"nodes": 2}))


REFUSALS = [
    ({"engine": "deepspeed"}, "NotYetSupported", "parallelism.engine", "'deepspeed'"),
    ({"context": 2}, "NotYetSupported", "parallelism.context", "2"),
    ({"tensor": 4}, "TensorBeyondNode", "parallelism.tensor", "4 does not divide the 2 devices"),
    (
        {"tensor": 2, "num_key_value_heads": 1},
        "HeadsNotDivisible",
        "parallelism.tensor",
        "1 is not divisible by tensor 2",
    ),
    ({"tensor": 2, "intermediate_size": 511}, "IntermediateNotDivisible", "parallelism.tensor", "511"),
    ({"tensor": 2, "vocab_size": 2047}, "VocabularyNotDivisible", "parallelism.tensor", "2047"),
    ({"pipeline": 4, "num_hidden_layers": 6}, "LayersNotDivisible", "parallelism.pipeline", "6 is not divisible"),
    ({"tensor": 2, "pipeline": 2, "data": 2}, "WorldSizeMismatch", "parallelism", "4 = 2 nodes x 2 devices"),
    ({"data": 4, "global_batch_size": 6}, "BatchNotDivisible", "training.globalBatchSize", "next multiple is 8"),
    ({"micro_batch_size": 3}, "BatchNotDivisible", "training.globalBatchSize", "micro-batch 3"),
    ({"accelerator": "v100-sxm-32g", "precision": "bf16"}, "PrecisionNotAvailable", "training.precision", "15.7"),
    ({"max_position_embeddings": 128}, "SequenceTooLong", "data.sequenceLength", "256 exceeds"),
]


@pytest.mark.parametrize(("changes", "reason", "field", "numbers"), REFUSALS, ids=[f"{r[1]}-{r[3]}" for r in REFUSALS])
def test_refusal_names_reason_field_and_numbers(
    changes: dict[str, object], reason: str, field: str, numbers: str
) -> None:
    with pytest.raises(PlanError) as caught:
        plan(small(**changes))
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert numbers in caught.value.message


def test_cpu_memory_is_limited_only_by_the_pods_limit() -> None:
    assert plan(small()).memory.available_bytes is None
    with pytest.raises(PlanError, match="GiB are there"):
        plan(small(device_memory_bytes=GIB // 4))


def test_equal_requests_have_equal_plans() -> None:
    assert plan(request()) == plan(request())


shapes = st.builds(
    lambda groups, ratio, size, ffn, layers, vocab, tied: LlamaShape(
        vocab_size=64 * vocab,
        hidden_size=groups * ratio * size,
        intermediate_size=16 * ffn,
        num_hidden_layers=layers,
        num_attention_heads=groups * ratio,
        num_key_value_heads=groups,
        tie_word_embeddings=tied,
    ),
    groups=st.sampled_from([1, 2, 3, 4, 8]),
    ratio=st.sampled_from([1, 2, 4]),
    size=st.sampled_from([32, 64, 128]),
    ffn=st.integers(8, 512),
    layers=st.integers(1, 48),
    vocab=st.integers(1, 2000),
    tied=st.booleans(),
)
axis = st.sampled_from(["auto", "auto", "auto", "auto", 1, 2, 3, 4, 8])
requests = st.builds(
    lambda **fields: PlanRequest.model_validate(fields),
    model=shapes,
    sequence_length=st.sampled_from([128, 1000, 4096]),
    global_batch_size=st.integers(1, 512),
    precision=st.sampled_from(["fp32", "bf16"]),
    micro_batch_size=st.one_of(st.just("auto"), st.integers(1, 4)),
    recompute=st.sampled_from(["auto", "none", "full"]),
    tensor=axis,
    pipeline=axis,
    data=axis,
    nodes=st.integers(1, 12),
    devices_per_node=st.sampled_from([1, 2, 4, 6, 8]),
    accelerator=st.sampled_from(["cpu", "l4", "a100-80g", "h100-sxm"]),
)


def attempt(asked: PlanRequest) -> Plan | PlanError:
    """A plan, or why there is none."""
    try:
        return plan(asked)
    except PlanError as error:
        return error


def check(asked: PlanRequest, chosen: Plan) -> None:
    shape, memory = asked.model, chosen.memory
    assert chosen.world_size == asked.nodes * asked.devices_per_node
    assert asked.devices_per_node % chosen.tensor == 0
    for size in (shape.num_attention_heads, shape.key_value_heads, shape.intermediate_size, shape.vocab_size):
        assert size % chosen.tensor == 0
    assert shape.num_hidden_layers % chosen.pipeline == 0
    assert chosen.micro_batch_size * chosen.data * chosen.accumulation_steps == asked.global_batch_size
    for name in ("tensor", "pipeline", "data", "micro_batch_size", "recompute"):
        assert getattr(asked, name) in ("auto", getattr(chosen, name))
    parts = memory.model_dump(exclude={"total_bytes", "available_bytes"})
    assert sum(parts.values()) == memory.total_bytes
    assert memory.available_bytes is None or memory.total_bytes <= memory.available_bytes
    assert 0 <= chosen.bubble_ratio < 1
    assert chosen.distributed_optimizer is (chosen.data > 1)
    assert Plan.model_validate_json(chosen.to_json()) == chosen


@given(requests)
@settings(max_examples=300, deadline=None)
def test_every_plan_is_legal_and_fits_and_every_refusal_has_a_reason(asked: PlanRequest) -> None:
    outcome = attempt(asked)
    if isinstance(outcome, Plan):
        check(asked, outcome)
    else:
        assert outcome.reason.isalnum()
        assert outcome.reason[0].isupper()
        assert any(character.isdigit() for character in outcome.message)


@given(requests, st.integers(1, 8))
@settings(max_examples=100, deadline=None)
def test_more_memory_never_turns_a_plan_into_a_refusal(asked: PlanRequest, factor: int) -> None:
    chosen = attempt(asked)
    if isinstance(chosen, PlanError):
        return
    if chosen.memory.available_bytes is not None:
        larger = asked.model_copy(update={"device_memory_bytes": chosen.memory.available_bytes * factor})
        assert plan(larger).world_size == chosen.world_size


@given(requests)
@settings(max_examples=100, deadline=None)
def test_all_axes_asked_for_as_planned_give_the_same_plan(asked: PlanRequest) -> None:
    chosen = attempt(asked)
    if isinstance(chosen, PlanError):
        return
    fixed = {name: getattr(chosen, name) for name in ("tensor", "pipeline", "data", "micro_batch_size", "recompute")}
    again = plan(asked.model_copy(update=fixed))
    assert again.model_dump(exclude={"rule"}) == chosen.model_dump(exclude={"rule"})


def test_candidates_are_all_different() -> None:
    candidates = layouts(request(nodes=4))
    assert len(candidates) == len(set(candidates))
