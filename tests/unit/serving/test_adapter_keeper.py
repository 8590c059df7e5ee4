"""The adapters that vLLM lists become those that are wanted, and what is told is what vLLM lists."""

from pathlib import Path

import pytest
from model_files import HIDDEN, MODULE, adapter

from trireme.protocol.serving import AdapterSource, ModelSource
from trireme_serving import adapters as module
from trireme_serving.adapters import AdapterKeeper
from trireme_serving.cache import NodeCache
from trireme_serving.errors import EngineRefused

BASE = "/models/base"


class FakeEngine:
    """vLLM's list of models, by its documented API."""

    def __init__(self) -> None:
        self.listed = {"llama": BASE}
        self.calls: list[str] = []
        self.refuses = False

    async def models(self) -> dict[str, str]:
        return dict(self.listed)

    async def load_adapter(self, name: str, directory: Path) -> None:
        self.calls.append(f"load {name}")
        if self.refuses:
            raise EngineRefused("/v1/load_lora_adapter: 500: no room")
        self.listed[name] = str(directory)

    async def unload_adapter(self, name: str) -> None:
        self.calls.append(f"unload {name}")
        del self.listed[name]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def keeper(engine: FakeEngine, tmp_path: Path) -> AdapterKeeper:
    shapes = {f"{MODULE}.weight": (HIDDEN, HIDDEN)}
    return AdapterKeeper(engine, NodeCache(tmp_path / "cache", None), ModelSource(uri=BASE), shapes, 8)


def source(path: Path, name: str = "fr", version: str = "1") -> AdapterSource:
    return AdapterSource(name=name, id=version, uri=str(path))


async def test_adapters_come_and_go_and_each_is_loaded_once(
    engine: FakeEngine, keeper: AdapterKeeper, tmp_path: Path
) -> None:
    wanted = [source(adapter(tmp_path / "fr", BASE)), source(adapter(tmp_path / "de", BASE), "de", "2")]
    for _ in range(3):
        loaded = await keeper.round(wanted, "llama")
    assert [(a.name, a.id) for a in loaded] == [("de", "2"), ("fr", "1")]
    assert all(a.digest.startswith("sha256:") for a in loaded)
    assert engine.calls == ["load fr", "load de"]
    assert [a.name for a in await keeper.round(wanted[1:], "llama")] == ["de"]
    assert engine.calls[-1] == "unload fr"


async def test_a_swap_keeps_the_name_answering(engine: FakeEngine, keeper: AdapterKeeper, tmp_path: Path) -> None:
    await keeper.round([source(adapter(tmp_path / "one", BASE))], "llama")
    loaded = await keeper.round([source(adapter(tmp_path / "two", BASE), version="2")], "llama")
    assert [(a.id, a.uri) for a in loaded] == [("2", str(tmp_path / "two"))]
    assert engine.calls == ["load fr", "load fr"]


async def test_a_restarted_engine_gets_its_adapters_again(
    engine: FakeEngine, keeper: AdapterKeeper, tmp_path: Path
) -> None:
    wanted = [source(adapter(tmp_path / "fr", BASE))]
    await keeper.round(wanted, "llama")
    engine.listed = {"llama": BASE}
    assert [a.name for a in await keeper.round(wanted, "llama")] == ["fr"]


async def test_an_adapter_of_another_base_is_never_loaded(
    engine: FakeEngine, keeper: AdapterKeeper, tmp_path: Path
) -> None:
    assert await keeper.round([source(adapter(tmp_path / "fr", "/models/other"))], "llama") == []
    assert [r.reason for r in keeper.refused] == ["AdapterBaseMismatch"]
    assert "trained on /models/other; served is /models/base" in keeper.refused[0].message
    assert engine.calls == []
    await keeper.round([], "llama")
    assert keeper.refused == []


async def test_a_bad_successor_leaves_the_adapter_before_it_answering(
    engine: FakeEngine, keeper: AdapterKeeper, tmp_path: Path
) -> None:
    await keeper.round([source(adapter(tmp_path / "one", BASE))], "llama")
    loaded = await keeper.round([source(adapter(tmp_path / "two", "/models/other"), version="2")], "llama")
    assert [(a.name, a.id) for a in loaded] == [("fr", "1")]
    assert [r.reason for r in keeper.refused] == ["AdapterBaseMismatch"]


async def test_what_vllm_refuses_is_told_and_tried_again_later(
    engine: FakeEngine, keeper: AdapterKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [source(adapter(tmp_path / "fr", BASE))]
    engine.refuses = True
    for _ in range(3):
        assert await keeper.round(wanted, "llama") == []
    assert [(r.reason, "no room" in r.message) for r in keeper.refused] == [("AdapterLoadFailed", True)]
    assert engine.calls == ["load fr"]
    engine.refuses = False
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    assert [a.name for a in await keeper.round(wanted, "llama")] == ["fr"]
    assert keeper.refused == []
