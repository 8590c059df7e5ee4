"""What a spec means: quantities, defaults, derived numbers, clear refusals, kinds."""

import string
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kubernetes.utils.quantity import parse_quantity as reference_quantity
from pydantic import TypeAdapter, ValidationError

from trireme.planning.hardware import HARDWARE
from trireme.planning.shape import PRESETS
from trireme.resources import PRETRAIN_JOB, PretrainSpec, SpecError, all_kinds, kind_named
from trireme.resources.base import IntOrAuto, Quantity, parse_quantity, parse_quantity_bytes
from trireme.resources.common import RESERVED_ENV_NAMES, Budgets, Workers, is_reserved_env
from trireme.resources.pretrain import PresetName, plan_request


def spec(**parts: Any) -> dict[str, Any]:
    """The raw spec of a small job; a part given replaces the part here."""
    return {
        "model": {"preset": "llama3.2-1b"},
        "data": {"sources": [{"uri": "s3://corpus/text"}], "sequenceLength": 1024},
        "training": {"globalBatchSize": 32, "steps": 1000},
        "workers": {"nodes": 2, "devicesPerNode": 4, "accelerator": {"kind": "a100-80g"}},
        "checkpoint": {"uri": "s3://runs/x"},
        **parts,
    }


suffixes = st.sampled_from(["", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E2"])
numbers = st.one_of(st.integers(0, 10**9).map(str), st.decimals(0, 10**6, places=3).map(str))


@given(numbers, suffixes)
def test_quantities_mean_what_they_mean_to_kubernetes(number: str, suffix: str) -> None:
    expected = (
        Decimal(number) * Decimal(10) ** int(suffix[1:])
        if suffix[1:].isdigit()
        else reference_quantity(number + suffix)
    )
    assert parse_quantity(number + suffix) == expected


@given(st.text(string.printable, max_size=8))
def test_a_quantity_is_refused_exactly_where_it_has_no_value(text: str) -> None:
    adapter = TypeAdapter(Quantity)
    try:
        parse_quantity(text)
    except ValueError:
        with pytest.raises(ValidationError):
            adapter.validate_python(text)
    else:
        assert adapter.validate_python(text) == text


def test_plain_integers_are_quantities_and_bytes_are_whole() -> None:
    assert TypeAdapter(Quantity).validate_python(2) == "2"
    assert parse_quantity_bytes("1.5Gi") == 1_610_612_736


@pytest.mark.parametrize(("value", "taken"), [("auto", True), (4, True), (0, False), ("4", False), ("Auto", False)])
def test_an_axis_is_a_positive_number_or_auto(value: Any, taken: bool) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(IntOrAuto)
    if taken:
        assert adapter.validate_python(value) == value
    else:
        with pytest.raises(ValidationError):
            adapter.validate_python(value, strict=isinstance(value, str))


def test_defaults_are_filled_in_and_survive_the_way_through_a_manifest() -> None:
    parsed = PRETRAIN_JOB.parse(spec())
    assert PRETRAIN_JOB.parse(parsed.to_manifest()) == parsed
    assert parsed.parallelism.tensor == "auto"
    assert parsed.fault_tolerance.budgets == Budgets()
    assert parsed.suspend is False


def test_tokens_are_rounded_up_to_whole_steps() -> None:
    per_step = 32 * 1024
    for tokens, steps in ((per_step, 1), (per_step + 1, 2), (10 * per_step - 1, 10)):
        parsed = PRETRAIN_JOB.parse(spec(training={"globalBatchSize": 32, "tokens": tokens}))
        assert parsed.total_steps == steps


@pytest.mark.parametrize(
    ("schedule", "steps"), [({}, 10), ({"warmupSteps": 7}, 7), ({"warmupRatio": 0.5}, 500), ({"warmupSteps": 0}, 0)]
)
def test_warm_up_is_given_in_steps_or_as_a_ratio(schedule: dict[str, Any], steps: int) -> None:
    parsed = PRETRAIN_JOB.parse(spec(training={"globalBatchSize": 32, "steps": 1000, "schedule": schedule}))
    assert parsed.warmup_steps == steps


def test_final_learning_rate_is_a_tenth_of_the_peak_unless_given() -> None:
    assert PRETRAIN_JOB.parse(spec()).training.min_learning_rate == pytest.approx(3e-5)


def test_shape_is_complete_whatever_was_left_out() -> None:
    shape = {
        "vocab_size": 1024,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    filled = PRETRAIN_JOB.parse(spec(model={"shape": shape})).shape
    assert (filled.num_key_value_heads, filled.head_dim, filled.max_position_embeddings) == (4, 16, 1024)


def test_refusal_names_the_field_and_how_many_more_there_are() -> None:
    with pytest.raises(SpecError) as caught:
        PRETRAIN_JOB.parse(spec(checkpoint={"uri": "/tmp"}, training={"globalBatchSize": 0, "steps": 1}))
    assert caught.value.field in {"checkpoint.uri", "training.globalBatchSize"}
    assert "and 1 more" in caught.value.message


@pytest.mark.parametrize("name", [*RESERVED_ENV_NAMES, "PET_X", "TRIREME_X", "TORCHELASTIC_X"])
def test_names_that_trireme_sets_are_reserved(name: str) -> None:
    assert is_reserved_env(name)
    with pytest.raises(ValidationError, match=name):
        Workers.model_validate({"accelerator": {"kind": "cpu"}, "env": [{"name": name, "value": "1"}]})


@pytest.mark.parametrize("name", ["NCCL_DEBUG", "RANKS", "AWS_REGION", "MY_TRIREME_X", "OMP_NUM_THREADS"])
def test_other_names_are_free(name: str) -> None:
    Workers.model_validate({"accelerator": {"kind": "cpu"}, "env": [{"name": name, "valueFrom": {"fieldRef": {}}}]})


def test_pod_parts_are_handed_on_with_fields_unknown_here() -> None:
    volume = {"name": "corpus", "hostPath": {"path": "/corpus", "type": "Directory"}}
    parsed = PRETRAIN_JOB.parse(spec(workers={"accelerator": {"kind": "cpu"}, "volumes": [volume]}))
    assert parsed.to_manifest()["workers"]["volumes"] == [volume]


def test_a_rank_on_cpus_may_use_its_share_of_the_pods_memory_limit() -> None:
    workers = {"devicesPerNode": 4, "accelerator": {"kind": "cpu"}, "resources": {"limits": {"memory": "8Gi"}}}
    assert plan_request(PRETRAIN_JOB.parse(spec(workers=workers))).device_memory_bytes == 2 * 1024**3
    workers = {"devicesPerNode": 4, "accelerator": {"kind": "a100-80g"}, "resources": {"limits": {"memory": "8Gi"}}}
    assert plan_request(PRETRAIN_JOB.parse(spec(workers=workers))).device_memory_bytes is None


def test_devices_are_requested_by_the_resource_of_their_kind_unless_named() -> None:
    def resource(**accelerator: str) -> str | None:
        return Workers.model_validate({"accelerator": accelerator}).accelerator.requested_resource

    assert resource(kind="h100-sxm") == "nvidia.com/gpu"
    assert resource(kind="h100-sxm", resourceName="nvidia.com/mig-3g.40gb") == "nvidia.com/mig-3g.40gb"
    assert resource(kind="cpu") is None


def test_presets_and_hardware_can_all_be_named_in_a_manifest() -> None:
    assert set(PresetName.__args__) == set(PRESETS)
    for kind in HARDWARE:
        Workers.model_validate({"accelerator": {"kind": kind}})


def test_a_kind_is_found_under_each_of_its_names() -> None:
    for name in ("PretrainJob", "pretrainjob", "pretrainjobs", "ptj", "PTJ"):
        assert kind_named(name) is PRETRAIN_JOB
    assert PRETRAIN_JOB in all_kinds()
    assert PRETRAIN_JOB.spec_model is PretrainSpec
    with pytest.raises(KeyError, match="PretrainJob"):
        kind_named("pod")
