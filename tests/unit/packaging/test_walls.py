"""The walls between the rooms hold at run time, not only in the import graph."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join(m.split('.')[0] for m in sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return set(out.stdout.split())


def test_the_api_package_loads_without_torch_kopf_or_a_cluster_client() -> None:
    loaded = modules_after("import trireme.protocol, trireme.checkpoints, trireme.resources.pretrain, trireme.planning")
    assert not loaded & {"torch", "kopf", "kubernetes", "boto3", "aiohttp", "megatron"}


def test_the_operator_loads_without_torch_or_an_s3_client() -> None:
    loaded = modules_after("import trireme_operator.main")
    assert "kopf" in loaded
    assert not loaded & {"torch", "boto3", "megatron", "transformers"}


def test_the_serving_program_loads_without_torch_an_engine_or_a_cluster_client() -> None:
    loaded = modules_after("import trireme_serving.replica, trireme_serving.guard")
    assert "boto3" in loaded
    assert not loaded & {"torch", "vllm", "transformers", "kopf", "kubernetes"}


def test_the_agent_loads_without_torch_or_a_cluster_client() -> None:
    loaded = modules_after("import trireme_trainer.agent.core, trireme_trainer.agent.server")
    assert not loaded & {"torch", "kopf", "kubernetes", "megatron"}
