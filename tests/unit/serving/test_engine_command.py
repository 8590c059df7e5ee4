"""vLLM's command line says what the spec says, and its last words are the cause of its end."""

from pathlib import Path

from model_files import config

from trireme.resources.inference import DENIED_ARGUMENTS
from trireme_serving.architectures import _tables
from trireme_serving.engine import arguments, environment, last_error


def flags(**changes: object) -> dict[str, str]:
    found = arguments(config("s3://m/base", **changes), Path("/files"), "10.0.0.1")
    return {name: value for name, _, value in (a.partition("=") for a in found)}


def test_every_field_has_its_flag() -> None:
    found = flags(
        dtype="bfloat16", max_model_length=128, kv_cache_bytes=1 << 20, devices=2, chat_template="{{ x }}", on_cpu=True
    )
    assert found["--model"] == "/files"
    assert found["--served-model-name"] == "llama"
    assert (found["--host"], found["--port"]) == ("10.0.0.1", "8000")
    assert (found["--dtype"], found["--max-model-len"]) == ("bfloat16", "128")
    assert found["--kv-cache-memory-bytes"] == "1048576"
    assert (found["--max-num-seqs"], found["--tensor-parallel-size"]) == ("4", "2")
    assert (found["--max-loras"], found["--max-lora-rank"]) == ("2", "8")
    assert "--enforce-eager" in found


def test_no_adapter_can_be_loaded_where_there_is_no_room_for_any() -> None:
    without = config("s3://m/base", adapter_room=None)
    assert "--enable-lora" not in flags(adapter_room=None)
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" not in environment({}, Path("/s"), "t", without)
    assert environment({}, Path("/s"), "t", config("s3://m/base"))["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_replicas_on_processors_are_not_bound_to_the_same_cores_unless_the_spec_says_where() -> None:
    on_cpu = config("s3://m/base", on_cpu=True)
    assert environment({}, Path("/s"), "t", on_cpu)["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    chosen = {"VLLM_CPU_OMP_THREADS_BIND": "2-3"}
    assert environment(chosen, Path("/s"), "t", on_cpu)["VLLM_CPU_OMP_THREADS_BIND"] == "2-3"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in environment({}, Path("/s"), "t", config("s3://m/base"))


def test_embeddings_are_a_pooling_model() -> None:
    assert flags(task="embedding", adapter_room=None)["--runner"] == "pooling"


def test_what_the_program_sets_itself_cannot_be_set_by_extra_arguments() -> None:
    every = flags(dtype="float32", max_model_length=8, kv_cache_bytes=1, chat_template="x", task="chat") | flags(
        task="embedding"
    )
    ours = set(every) - {"--disable-uvicorn-access-log"}
    assert ours <= set(DENIED_ARGUMENTS)


def test_the_cause_is_found_among_what_follows_from_it() -> None:
    lines = [
        "(EngineCore pid=7) ERROR 11-25 [core.py:9] ValueError: No available memory for the cache blocks.",
        "(APIServer pid=1) Traceback (most recent call last):",
        "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above.",
    ]
    assert last_error(lines) == "ValueError: No available memory for the cache blocks."
    assert last_error(["starting", "Killed"]) == "starting; Killed"


def test_what_pydantic_says_in_several_lines_is_told_whole() -> None:
    lines = [
        "(APIServer pid=3) pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "(APIServer pid=3)   Value error, max_model_len (100000) is greater than 256",
        "(APIServer pid=3)     For further information visit https://errors.pydantic.dev",
    ]
    assert "Value error, max_model_len (100000) is greater than 256" in last_error(lines)


def test_tables_of_a_registry_are_read_without_running_it() -> None:
    source = "raise SystemExit\n_A = {'X': ('x', 'X'), **Y}\n_B: dict = {'Z': 1}\nother()\n"
    assert _tables(source) == {"_A": {"X"}, "_B": {"Z"}}
