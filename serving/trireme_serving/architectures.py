"""Which architectures vLLM serves, read from its source: importing it takes ten seconds and half a gigabyte."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_GENERATING = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
_EMBEDDING = ("_EMBEDDING_MODELS", "_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")


@dataclass(frozen=True)
class Architectures:
    """Names of config.json's `architectures` by what they can be asked; `known` is False where vLLM was not found."""

    generating: frozenset[str] = field(default_factory=frozenset)
    embedding: frozenset[str] = field(default_factory=frozenset)
    transformers: str = ""
    """Source of transformers' table of model classes: vLLM runs many of them by its Transformers backend."""

    @property
    def known(self) -> bool:
        return bool(self.generating)

    def serves(self, architecture: str, task: str) -> bool:
        """Whether vLLM has the architecture for a task, or may run it by transformers' own code."""
        table = self.embedding if task == "embedding" else self.generating
        everywhere = self.embedding | self.generating
        return architecture in table or (architecture not in everywhere and f'"{architecture}"' in self.transformers)


@cache
def read_architectures() -> Architectures:
    """Of the vLLM and transformers that this interpreter would import."""
    registry = _source("vllm", "model_executor/models/registry.py")
    if registry is None:
        return Architectures()
    tables = _tables(registry)
    return Architectures(
        generating=frozenset(name for table in _GENERATING for name in tables.get(table, ())),
        embedding=frozenset(name for table in _EMBEDDING for name in tables.get(table, ())),
        transformers=_source("transformers", "models/auto/modeling_auto.py") or "",
    )


def _source(package: str, path: str) -> str | None:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / path
    return file.read_text() if file.is_file() else None


def _tables(source: str) -> dict[str, set[str]]:
    """The string keys of every dictionary that a module assigns to a name of its own."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.Dict):
            keys = {key.value for key in value.keys if isinstance(key, ast.Constant)}
            found[target.id] = {key for key in keys if isinstance(key, str)}
    return found
