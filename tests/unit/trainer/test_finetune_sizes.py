"""How many parameters a method trains, against closed formulas and published counts; no weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import GPTNeoXConfig, LlamaConfig

from trireme.resources.tuning import Method
from trireme_trainer.hf.models import BaseUnusable, Head, MethodUnusable, sizes

LAYERS, HIDDEN, FEED_FORWARD = 32, 4096, 11008


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaMA-7B (Touvron et al. 2023, table 2)."""
    directory = tmp_path_factory.mktemp("llama")
    LlamaConfig(
        vocab_size=55296,
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=LAYERS,
        num_attention_heads=32,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(directory)
    return directory


def low_rank(rank: int, *shapes: tuple[int, int]) -> int:
    """Of B in R^(d x r) and A in R^(r x k) for each matrix of a layer: r (d + k), Hu et al. 2021, section 4.1."""
    return LAYERS * sum(rank * (d + k) for d, k in shapes)


SQUARE, UP, DOWN = (HIDDEN, HIDDEN), (FEED_FORWARD, HIDDEN), (HIDDEN, FEED_FORWARD)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"lora": {"rank": 8, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}}, low_rank(8, SQUARE, SQUARE)),
        (
            {"lora": {"rank": 8, "alpha": 8, "targetModules": ["q_proj", "k_proj", "v_proj", "o_proj"]}},
            low_rank(8, *[SQUARE] * 4),
        ),
        ({"lora": {"rank": 8, "alpha": 8}}, low_rank(8, *[SQUARE] * 4, UP, UP, DOWN)),
        (
            {"lora": {"rank": 64, "alpha": 128, "modulesToSave": ["embed_tokens", "lm_head"]}},
            low_rank(64, *[SQUARE] * 4, UP, UP, DOWN) + 2 * 55296 * HIDDEN,
        ),
        ({"type": "promptTuning", "virtualTokens": 20}, 20 * HIDDEN),
        ({"type": "prefix", "virtualTokens": 20}, 20 * LAYERS * 2 * HIDDEN),
        ({"type": "peft", "peft": {"peft_type": "IA3"}}, LAYERS * (2 * HIDDEN + FEED_FORWARD)),
    ],
    ids=["q and v", "attention", "all linear", "with embeddings", "prompt tuning", "prefix tuning", "IA3"],
)
def test_what_is_trained_is_what_the_formula_says(llama: Path, method: dict[str, Any], expected: int) -> None:
    counted = sizes(llama, Method.model_validate(method))
    assert counted.trainable == expected
    assert counted.total > 6_000_000_000


GROUPS, HEAD_SIZE, LAYERS_8B, FEED_FORWARD_8B, TOKENS = 8, 128, 32, 14336, 20


@pytest.fixture(scope="module")
def llama3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama 3 8B (Grattafiori et al. 2024, table 3): 32 query heads share 8 keys and values."""
    directory = tmp_path_factory.mktemp("llama3")
    LlamaConfig(
        vocab_size=128256,
        hidden_size=HIDDEN,
        intermediate_size=FEED_FORWARD_8B,
        num_hidden_layers=LAYERS_8B,
        num_attention_heads=32,
        num_key_value_heads=GROUPS,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(directory)
    return directory


def linear(inputs: int, outputs: int) -> int:
    """Of a linear layer with a bias."""
    return outputs * (inputs + 1)


QV = {"target_modules": ["q_proj", "v_proj"]}
KEY_VALUE = (GROUPS * HEAD_SIZE, HIDDEN)
UP_8B, DOWN_8B = (FEED_FORWARD_8B, HIDDEN), (HIDDEN, FEED_FORWARD_8B)
LORA_8B = low_rank(8, SQUARE, KEY_VALUE, KEY_VALUE, SQUARE, UP_8B, UP_8B, DOWN_8B)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"lora": {"rank": 8, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}}, low_rank(8, SQUARE, KEY_VALUE)),
        ({"lora": {"rank": 8, "alpha": 8}}, LORA_8B),
        ({"type": "qlora", "lora": {"rank": 8, "alpha": 8}}, LORA_8B),
        ({"type": "prefix", "virtualTokens": TOKENS}, 2 * LAYERS_8B * GROUPS * HEAD_SIZE * TOKENS),
        ({"type": "promptTuning", "virtualTokens": TOKENS}, TOKENS * HIDDEN),
        ({"type": "pTuning", "virtualTokens": TOKENS}, TOKENS * HIDDEN + 3 * linear(HIDDEN, HIDDEN)),
        ({"type": "peft", "peft": {"peft_type": "IA3"}}, LAYERS_8B * (2 * KEY_VALUE[0] + FEED_FORWARD_8B)),
        (
            {"type": "peft", "peft": {"peft_type": "ADALORA", "init_r": 12, "total_step": 10, **QV}},
            low_rank(12, SQUARE, KEY_VALUE) + LAYERS_8B * 2 * 12,
        ),
        (
            {"type": "peft", "peft": {"peft_type": "LORA", "r": 8, "use_dora": True, **QV}},
            low_rank(8, SQUARE, KEY_VALUE) + LAYERS_8B * (HIDDEN + KEY_VALUE[0]),
        ),
    ],
    ids=["q and v", "all linear", "in 4 bits", "prefix", "prompt tuning", "p-tuning", "IA3", "AdaLoRA", "DoRA"],
)  # fmt: skip
def test_grouped_query_attention_is_counted_with_its_fewer_keys_and_values(
    llama3: Path, method: dict[str, Any], expected: int
) -> None:
    """Prefixes: keys and values of every layer (Li and Liang 2021, section 4.3). Prompt tuning: Lester et al. 2021,
    section 2. P-tuning: Liu et al. 2021, here a feed-forward encoder of three layers. AdaLoRA: P, diagonal of r, Q
    (Zhang et al. 2023, section 3.1). DoRA: a magnitude per output (Liu et al. 2024, section 4.1).
    """
    assert sizes(llama3, Method.model_validate(method)).trainable == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"lora": {"rank": 8, "alpha": 8, "targetModules": ["q_proj", "v_proj"]}}, low_rank(8, SQUARE, KEY_VALUE)),
        ({"lora": {"rank": 8, "alpha": 8}}, LORA_8B),
        ({"type": "prefix", "virtualTokens": TOKENS}, 2 * LAYERS_8B * GROUPS * HEAD_SIZE * TOKENS),
    ],
    ids=["q and v", "all linear", "prefix"],
)
def test_a_classifiers_head_is_trained_whole_beside_the_adapter(
    llama3: Path, method: dict[str, Any], expected: int
) -> None:
    head = Head("SEQ_CLS", names=("a", "b", "c", "d", "e"))
    counted = sizes(llama3, Method.model_validate(method), head)
    assert counted.trainable == expected + 5 * HIDDEN
    body = 8_030_261_248 - 128256 * HIDDEN
    assert sizes(llama3, Method.model_validate({"type": "full"}), head).trainable == body + 5 * HIDDEN


def test_a_fused_matrix_of_query_key_and_value_is_one_matrix(tmp_path: Path) -> None:
    """28 layers of 4096 -> 12288 with r 8, as in ChatGLM-6B (Du et al. 2022): 3,670,016."""
    GPTNeoXConfig(
        hidden_size=4096, num_hidden_layers=28, num_attention_heads=32, intermediate_size=16384
    ).save_pretrained(tmp_path)
    method = {"lora": {"rank": 8, "alpha": 8, "targetModules": ["query_key_value"]}}
    assert sizes(tmp_path, Method.model_validate(method)).trainable == 28 * 8 * (4096 + 12288) == 3_670_016


def test_published_counts(llama: Path) -> None:
    """Of LLaMA-7B: 4,194,304 for r 8 on q and v, 19,988,480 on all seven; of the Chinese LLaMA-2, 612,892,672.

    The share of one matrix is r/k + r/d: with d = k = 4096 and r = 8 it is 0.00390625.
    """
    assert low_rank(8, SQUARE) / (LAYERS * HIDDEN * HIDDEN) == 8 / HIDDEN + 8 / HIDDEN == 0.00390625
    assert low_rank(8, SQUARE, SQUARE) == 4_194_304
    assert low_rank(8, *[SQUARE] * 4) == 8_388_608
    assert low_rank(8, *[SQUARE] * 4, UP, UP, DOWN) == 19_988_480
    assert low_rank(64, *[SQUARE] * 4, UP, UP, DOWN) + 2 * 55296 * HIDDEN == 612_892_672
    assert (
        sizes(llama, Method.model_validate({"type": "full"})).trainable == 6_738_415_616 + 2 * (55296 - 32000) * HIDDEN
    )


@pytest.mark.parametrize(
    "method",
    [
        {"lora": {"rank": 8, "alpha": 8, "targetModules": ["query"]}},
        {"type": "peft", "peft": {"peft_type": "NO_SUCH"}},
        {"type": "peft", "peft": {"peft_type": "IA3", "no_such_field": 1}},
        {"type": "peft", "peft": {}},
    ],
)
def test_a_method_that_does_not_fit_the_base_is_refused(llama: Path, method: dict[str, Any]) -> None:
    with pytest.raises(MethodUnusable):
        sizes(llama, Method.model_validate(method))


@pytest.mark.parametrize("config", ['{"model_type": "resnet"}', '{"model_type": "no-such-model"}', "{"])
def test_what_is_no_language_model_is_no_base(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(BaseUnusable):
        sizes(tmp_path, Method.model_validate({"type": "full"}))
