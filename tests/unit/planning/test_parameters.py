"""Parameter counts and memory formulas against published numbers."""

import pytest

from trireme.planning.memory import (
    GRADIENT_BYTES,
    OPTIMIZER_BYTES,
    STATE_BYTES,
    WEIGHT_BYTES,
    Layout,
    layer_activation_bytes,
    stage_parameters,
    zero_bytes_per_parameter,
)
from trireme.planning.shape import PRESETS, LlamaShape, count_parameters, layer_parameters

# Sizes of the published checkpoints (sum over safetensors headers; "params" on the models' pages).
PUBLISHED = {
    "llama-7b": 6_738_415_616,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "tinyllama-1.1b": 1_100_048_384,
}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_has_exactly_the_published_number_of_parameters(name: str) -> None:
    assert count_parameters(PRESETS[name]) == PUBLISHED[name]


def test_llama_7b_is_the_sum_of_its_published_matrices() -> None:
    embedding, attention, feed_forward = 131_072_000, 16_777_216, 45_088_768
    assert layer_parameters(PRESETS["llama-7b"]) == 4 * attention + 3 * feed_forward + 2 * 4096
    assert (
        count_parameters(PRESETS["llama-7b"]) == 2 * embedding + 32 * (4 * attention + 3 * feed_forward + 8192) + 4096
    )


def test_states_take_16_bytes_per_parameter_in_either_precision() -> None:
    for precision in ("bf16", "fp32"):
        total = WEIGHT_BYTES[precision] + GRADIENT_BYTES[precision] + OPTIMIZER_BYTES[precision]
        assert total == STATE_BYTES


@pytest.mark.parametrize(
    ("data", "gigabytes"),
    # Rajbhandari et al. 2020 (arXiv:1910.02054), figure 1's formulas at 7B; stages 1, 2, 3.
    [(1, (112.0, 112.0, 112.0)), (8, (38.5, 26.25, 14.0)), (64, (29.3125, 15.53125, 1.75))],
)
def test_zero_stages_share_out_states_as_published(data: int, gigabytes: tuple[float, ...]) -> None:
    assert tuple(7 * zero_bytes_per_parameter(stage, data) for stage in (1, 2, 3)) == pytest.approx(gigabytes)


def test_zero_figure_1_of_the_paper_at_7_5_billion_and_64_devices() -> None:
    """Figure 1: baseline 120 GB, 31.4 GB, 16.6 GB, 1.9 GB."""
    found = [7.5 * zero_bytes_per_parameter(stage, 64) for stage in range(4)]
    assert [round(g, 1) for g in found] == [120.0, 31.4, 16.6, 1.9]


@pytest.mark.parametrize(
    ("stages", "micro_batches", "ratio"),
    # Huang et al. 2019 (GPipe): (K-1)/(K+M-1).
    [(4, 1, 0.75), (4, 4, 0.4286), (4, 8, 0.2727), (4, 16, 0.1579), (4, 32, 0.0857), (8, 32, 0.1795), (1, 7, 0.0)],
)
def test_bubble_is_the_published_share(stages: int, micro_batches: int, ratio: float) -> None:
    assert Layout(1, stages, 1, 1, micro_batches, "none").bubble_ratio == pytest.approx(ratio, abs=5e-5)


@pytest.mark.parametrize("name", ["llama3-8b", "llama3.2-1b"])
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (1, 2), (4, 4), (8, 2)])
def test_stages_hold_every_parameter_at_least_once(name: str, tensor: int, pipeline: int) -> None:
    """Sharded ones once; norms once per tensor rank; a tied output layer once more on the last stage."""
    shape = PRESETS[name]
    held = tensor * sum(stage_parameters(shape, tensor, pipeline, stage) for stage in range(pipeline))
    norms = shape.hidden_size * (2 * shape.num_hidden_layers + 1)
    copies = shape.vocab_size * shape.hidden_size if shape.tie_word_embeddings and pipeline > 1 else 0
    assert held == count_parameters(shape) + (tensor - 1) * norms + copies


def test_activation_bound_is_near_korthikanti_for_a_gpt_like_layer() -> None:
    """Korthikanti et al. 2022: 34 sbh bytes per layer without scores; SwiGLU at 8h/3 and no dropout masks differ."""
    shape = LlamaShape(
        vocab_size=51200, hidden_size=12288, intermediate_size=32768, num_hidden_layers=96, num_attention_heads=96
    )
    per_token = layer_activation_bytes(shape, 2048, 1, "bf16") / (2048 * 12288)
    assert 34 < per_token < 1.6 * 34


def test_activations_fall_with_the_tensor_axis_but_not_below_the_replicated_part() -> None:
    shape = PRESETS["llama3-8b"]
    sizes = [layer_activation_bytes(shape, 8192, t, "bf16") for t in (1, 2, 4, 8)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 8192 * 2 * 4 * shape.hidden_size
