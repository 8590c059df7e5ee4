"""The planner's activation bound against what the engine really keeps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trireme.planning.memory import Layout, activation_bytes, logits_bytes
from trireme.planning.shape import LlamaShape

METER = Path(__file__).with_name("activation_meter.py")


@pytest.mark.parametrize("key_value_heads", [8, 2])
def test_bound_is_above_what_the_engine_keeps_and_not_far_above(key_value_heads: int) -> None:
    shape = {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": key_value_heads,
        "max_position_embeddings": 256,
    }
    asked = {"model": shape, "sequence_length": 256, "global_batch_size": 2, "micro_batch_size": 2}
    done = subprocess.run(
        [sys.executable, str(METER), json.dumps(asked)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    kept = json.loads(done.stdout.strip().splitlines()[-1])["bytes"]
    layout, llama = Layout(1, 1, 1, 2, 1, "none"), LlamaShape.model_validate(shape)
    bound = activation_bytes(llama, layout, 256, "fp32", 0, fused=False) + logits_bytes(llama, layout, 256, "fp32")
    assert kept <= bound <= 1.3 * kept
