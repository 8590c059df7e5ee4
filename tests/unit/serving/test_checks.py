"""What cannot be served is refused before vLLM starts, with the first offending file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_files import HIDDEN, MODULE, adapter, config, model, write_json

from trireme.protocol.serving import AdapterSource, ModelSource
from trireme_serving.architectures import Architectures
from trireme_serving.checks import INDEX, check_adapter, check_model
from trireme_serving.errors import Unusable
from trireme_serving.safetensors_file import read_shapes

KNOWN = Architectures(frozenset({"LlamaForCausalLM"}), frozenset({"BertModel"}), '("gpt2", "GPT2LMHeadModel")')
DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_a_whole_model_is_taken_and_its_tensors_are_known(tmp_path: Path) -> None:
    found = check_model(model(tmp_path), config(str(tmp_path), task="chat"), KNOWN)
    assert found == {f"{MODULE}.weight": (HIDDEN, HIDDEN)}


def without(name: str) -> Callable[[Path], Any]:
    return lambda directory: (directory / name).unlink()


def put(name: str, content: Any) -> Callable[[Path], Any]:
    return lambda directory: write_json(directory / name, content)


def cut(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def overlapping(directory: Path) -> None:
    path = directory / "model.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


BAD = [
    (without("config.json"), "ConfigMissing", "config.json"),
    (put("config.json", []), "ConfigInvalid", "config.json"),
    (put("config.json", {}), "ArchitectureUnknown", "config.json"),
    (put("config.json", {"architectures": ["FantasyForCausalLM"]}), "ArchitectureUnknown", "config.json"),
    (put("config.json", {"architectures": ["BertModel"]}), "ArchitectureUnknown", "config.json"),
    (without("tokenizer.json"), "TokenizerMissing", "tokenizer.json"),
    (lambda d: (d / "tokenizer.json").write_text("{"), "TokenizerInvalid", "tokenizer.json"),
    (put("tokenizer_config.json", {}), "ChatTemplateMissing", "tokenizer_config.json"),
    (without("model.safetensors"), "WeightsMissing", "model.safetensors"),
    (put(INDEX, {"weight_map": {"a": "gone.safetensors"}}), "WeightsMissing", "gone.safetensors"),
    (put(INDEX, {"weight_map": {"a": "../x.safetensors"}}), "WeightsMissing", "../x.safetensors"),
    (cut, "WeightsCorrupt", "model.safetensors"),
    (overlapping, "WeightsCorrupt", "model.safetensors"),
    (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 64), "WeightsCorrupt", "model.safetensors"),
    (lambda d: (d / "model.safetensors").write_bytes(b""), "WeightsCorrupt", "model.safetensors"),
]


@pytest.mark.parametrize(("damage", "reason", "file"), BAD)
def test_a_bad_model_is_refused_with_reason_and_file(
    tmp_path: Path, damage: Callable[[Path], Any], reason: str, file: str
) -> None:
    damage(model(tmp_path))
    with pytest.raises(Unusable) as refused:
        check_model(tmp_path, config(str(tmp_path), task="chat"), KNOWN)
    assert (refused.value.reason, refused.value.file) == (reason, file)


def test_an_adapter_named_as_the_model_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match="serve its base") as refused:
        check_model(adapter(tmp_path, "s3://m/base"), config(str(tmp_path)), KNOWN)
    assert refused.value.reason == "ModelIsAdapter"


def test_what_transformers_alone_knows_is_left_to_vllm(tmp_path: Path) -> None:
    check_model(model(tmp_path, architecture="GPT2LMHeadModel"), config(str(tmp_path)), KNOWN)


def check(directory: Path, recorded: dict[str, Any] | None = None, rank: int = 8, **source: Any) -> None:
    given = AdapterSource(name="fr", id="1", uri="s3://m/fr", **source)
    shapes = {f"{MODULE}.weight": (HIDDEN, HIDDEN)}
    check_adapter(directory, given, ModelSource(uri="s3://m/base/", digest=DIGEST), recorded or {}, shapes, rank)


@pytest.mark.parametrize("place", ["", "adapter"])
def test_an_adapter_of_the_served_model_is_taken_wherever_its_export_put_it(tmp_path: Path, place: str) -> None:
    adapter(tmp_path / place, "s3://m/base")
    check(tmp_path)


def test_an_adapter_of_the_same_files_under_another_uri_is_known_by_the_recorded_digest(tmp_path: Path) -> None:
    adapter(tmp_path, "/somewhere/else")
    check(tmp_path, {"uri": "/somewhere/else", "digest": DIGEST})


def test_another_name_of_the_base_counts_when_the_spec_says_so(tmp_path: Path) -> None:
    adapter(tmp_path, "meta/llama")
    check(tmp_path, base="meta/llama")


BAD_ADAPTERS = [
    ({}, {"digest": OTHER, "uri": "s3://m/base"}, "AdapterBaseMismatch"),
    ({"base": "s3://m/other"}, {}, "AdapterBaseMismatch"),
    ({"base": ""}, {}, "AdapterBaseMismatch"),
    ({"hidden": 16}, {}, "AdapterBaseMismatch"),
    ({"peft_type": "PREFIX_TUNING"}, {}, "AdapterNotLora"),
    ({"r": 16}, {}, "AdapterRank"),
    ({"rank_pattern": {"q_proj": 64}}, {}, "AdapterRank"),
]


@pytest.mark.parametrize(("changes", "recorded", "reason"), BAD_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], recorded: dict[str, Any], reason: str
) -> None:
    adapter(tmp_path, **{"base": "s3://m/base", **changes})
    with pytest.raises(Unusable) as refused:
        check(tmp_path, recorded)
    assert refused.value.reason == reason


def test_tensors_of_every_layout_that_the_library_writes_are_read(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    arrays = {"a": np.zeros((3, 5), np.float16), "b": np.zeros((), np.int64), "c": np.zeros((0, 4), np.uint8)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "pt"})
    assert read_shapes(tmp_path / "x.safetensors") == {"a": (3, 5), "b": (), "c": (0, 4)}
