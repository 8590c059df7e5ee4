"""How many parameters a method trains, against closed formulas and published counts; no weight is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from trireme.resources.tuning import Method
from trireme_trainer.hf.models import BaseUnusable, MethodUnusable, sizes

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


def test_published_counts(llama: Path) -> None:
    """Of LLaMA-7B: 4,194,304 for r 8 on q and v, 19,988,480 on all seven; of the Chinese LLaMA-2, 612,892,672."""
    assert low_rank(8, SQUARE, SQUARE) == 4_194_304
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
