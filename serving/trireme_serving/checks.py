"""Whether a directory holds a model, or an adapter of it, that can be served; the first offending file if not."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trireme.protocol.serving import AdapterSource, ModelSource, ServingConfig
from trireme_serving.architectures import Architectures
from trireme_serving.errors import Unusable
from trireme_serving.safetensors_file import Shapes, read_shapes

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_DIRECTORY = "adapter_config.json", "adapter_model.safetensors", "adapter"
TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("tekken.json",), ("vocab.txt",))
MAX_JSON_BYTES = 256 << 20


def check_model(directory: Path, config: ServingConfig, architectures: Architectures) -> Shapes:
    """The shapes of the model's tensors. Raises Unusable."""
    if not (directory / CONFIG).is_file():
        if (directory / ADAPTER_CONFIG).is_file():
            message = "this is an adapter and no model: serve its base, and name this one under adapters"
            raise Unusable("ModelIsAdapter", ADAPTER_CONFIG, message)
        raise Unusable("ConfigMissing", CONFIG, "there is no such file, so this is no model in Hugging Face layout")
    described = read_json(directory / CONFIG, "ConfigInvalid")
    names = described.get("architectures")
    if not isinstance(names, list) or not names:
        raise Unusable("ArchitectureUnknown", CONFIG, "it names no architectures")
    if architectures.known and not any(architectures.serves(str(name), config.task) for name in names):
        listed = ", ".join(map(str, names))
        raise Unusable("ArchitectureUnknown", CONFIG, f"vLLM does not serve {listed} for task {config.task}")
    _check_tokenizer(directory, config)
    return _check_weights(directory)


def _check_tokenizer(directory: Path, config: ServingConfig) -> None:
    if not any(all((directory / name).is_file() for name in names) for names in TOKENIZERS):
        raise Unusable("TokenizerMissing", TOKENIZERS[0][0], "there is neither this nor any other tokenizer file")
    if (directory / "tokenizer.json").is_file():
        read_json(directory / "tokenizer.json", "TokenizerInvalid")
    if config.task != "chat" or config.chat_template or (directory / "chat_template.jinja").is_file():
        return
    if (directory / "chat_template.json").is_file():
        return
    settings = directory / "tokenizer_config.json"
    if not settings.is_file() or not read_json(settings, "TokenizerInvalid").get("chat_template"):
        message = "there is no chat template: set spec.chatTemplate, or serve task completion"
        raise Unusable("ChatTemplateMissing", settings.name, message)


def _check_weights(directory: Path) -> Shapes:
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if (directory / INDEX).is_file():
        mapped = read_json(directory / INDEX, "WeightsCorrupt").get("weight_map")
        if not isinstance(mapped, dict) or not mapped:
            raise Unusable("WeightsCorrupt", INDEX, "it maps no weights")
        names = sorted(set(map(str, mapped.values())))
    if not names:
        raise Unusable("WeightsMissing", WEIGHTS, "there are no safetensors files; other formats can hold code")
    found: Shapes = {}
    for name in names:
        if Path(name).name != name or not (directory / name).is_file():
            raise Unusable("WeightsMissing", name, f"there is no such file, and {INDEX} names it")
        found |= read_shapes(directory / name)
    return found


@dataclass(frozen=True)
class Adapter:
    """An adapter whose files are here and fit."""

    directory: Path
    rank: int


def adapter_directory(directory: Path) -> Path:
    """Where the adapter's own files lie: at the top, or in adapter/ beside a merged model. Raises Unusable."""
    for place in (directory, directory / ADAPTER_DIRECTORY):
        if (place / ADAPTER_CONFIG).is_file():
            return place
    raise Unusable("AdapterMissing", ADAPTER_CONFIG, f"it is neither at the top nor in {ADAPTER_DIRECTORY}/")


def check_adapter(
    directory: Path, source: AdapterSource, model: ModelSource, recorded_base: dict[str, Any], shapes: Shapes, rank: int
) -> Adapter:
    """The adapter in a directory, if it was trained on this model and fits it. Raises Unusable.

    `recorded_base` is what its export's manifest says of its base; empty where there is no manifest.
    """
    place = adapter_directory(directory)
    config = read_json(place / ADAPTER_CONFIG, "AdapterInvalid")
    if config.get("peft_type") != "LORA":
        raise Unusable("AdapterNotLora", ADAPTER_CONFIG, f"peft_type is {config.get('peft_type')}; vLLM serves LORA")
    _check_base(config, source, model, recorded_base)
    highest = max([_int(config.get("r")), *map(_int, (config.get("rank_pattern") or {}).values())])
    if not 1 <= highest <= rank:
        raise Unusable("AdapterRank", ADAPTER_CONFIG, f"rank {highest}; spec.adapterLimits.rank allows 1 to {rank}")
    if not (place / ADAPTER_WEIGHTS).is_file():
        raise Unusable("AdapterMissing", ADAPTER_WEIGHTS, "there is no such file")
    _check_shapes(read_shapes(place / ADAPTER_WEIGHTS), shapes)
    return Adapter(place, highest)


def _check_base(
    config: dict[str, Any], source: AdapterSource, model: ModelSource, recorded_base: dict[str, Any]
) -> None:
    digest = recorded_base.get("digest")
    if digest and model.digest and source.base is None:
        if digest != model.digest:
            message = f"trained on a model with digest {digest}; served is {model.digest}"
            raise Unusable("AdapterBaseMismatch", ADAPTER_CONFIG, message)
        return
    name = str(recorded_base.get("uri") or config.get("base_model_name_or_path") or "")
    if _plain(name) not in {_plain(model.uri), _plain(source.base or model.uri)}:
        message = f"trained on {name or 'a base that it does not name'}; served is {model.uri}"
        raise Unusable("AdapterBaseMismatch", ADAPTER_CONFIG, message)


def _plain(uri: str) -> str:
    return uri.removeprefix("file://").rstrip("/")


def _check_shapes(adapter: Shapes, model: Shapes) -> None:
    """Every low-rank pair must lie beside a matrix of its size: of A [rank, in] and B [out, rank]."""
    for name, shape in adapter.items():
        module, _, rest = name.removeprefix("base_model.model.").partition(".lora_")
        matrix = model.get(f"{module}.weight")
        if not rest or matrix is None or len(matrix) != 2 or len(shape) != 2 or "embedding" in rest:
            continue  # names differ between model families: what cannot be compared here, vLLM checks
        side, length = ("in", shape[1]) if rest.startswith("A") else ("out", shape[0])
        wanted = matrix[1] if side == "in" else matrix[0]
        if length != wanted:
            message = f"{name} is {list(shape)}, and the served model's {module} is {list(matrix)}"
            raise Unusable("AdapterBaseMismatch", ADAPTER_WEIGHTS, message)


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


def read_json(path: Path, reason: str) -> dict[str, Any]:
    """A JSON object. Raises Unusable with this reason."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise Unusable(reason, path.name, f"more than {MAX_JSON_BYTES} bytes")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unusable(reason, path.name, f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise Unusable(reason, path.name, "not a JSON object")
    return found
