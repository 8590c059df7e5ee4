"""The one place that knows Megatron-core assumes CUDA: on a CPU rank it answers for the device.

Megatron-core trains over gloo once five assumptions are met. `install` meets them for the whole process,
before Megatron-core is first imported, and `uninstall` takes every one of them back:

1. tensors asked for on "cuda" are made on the CPU;
2. `torch.cuda.current_device`, `synchronize` and the stream calls have a CPU answer;
3. `Tensor.type()` names the CUDA class that the distributed optimizer looks for;
4. the CUDA random-state tracker forks nothing (its states are the CPU generator's);
5. `torch.compile` is the identity while Megatron-core is imported: its decorators would pull in the
   inductor (over half of the import time) and compile kernels for a device that is not there.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

_FACTORIES = ("tensor", "zeros", "ones", "empty", "full", "arange", "empty_like", "zeros_like", "ones_like")
_saved: list[tuple[Any, str, Any]] = []


def installed() -> bool:
    """True between `install` and `uninstall`."""
    return bool(_saved)


def install() -> None:
    """Make this process train Megatron-core models on the CPU; a second call changes nothing."""
    if _saved:
        return
    for name in _FACTORIES:
        _replace(torch, name, _on_cpu(getattr(torch, name)))
    _replace(torch.Tensor, "cuda", lambda tensor, *_args, **_kwargs: tensor)
    _replace(torch.Tensor, "type", _type_as_cuda(torch.Tensor.type))
    cpu = torch.device("cpu")
    _replace(torch.cuda, "current_device", lambda: cpu)
    _replace(torch.cuda, "synchronize", lambda *_args: None)
    _replace(torch.cuda, "empty_cache", lambda: None)
    _replace(torch.cuda, "current_stream", lambda *_args: _Stream())
    _replace(torch.cuda, "default_stream", lambda *_args: _Stream())
    _replace(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())
    _replace(torch.cuda, "get_rng_state", lambda *_args: torch.get_rng_state())
    _import_megatron_without_compiling()
    from megatron.core.tensor_parallel import random as megatron_random

    _replace(megatron_random.CudaRNGStatesTracker, "fork", _fork_nothing)
    _replace(megatron_random, "_set_cuda_rng_state", lambda state, *_args, **_kwargs: torch.set_rng_state(state))
    _replace(megatron_random, "_get_cuda_rng_state", lambda *_args, **_kwargs: torch.get_rng_state())


def uninstall() -> None:
    """Put back everything that `install` replaced."""
    while _saved:
        owner, name, original = _saved.pop()
        setattr(owner, name, original)


class _Stream:
    """A stream on a device where work is done when the call returns."""

    def wait_stream(self, _other: object) -> None:
        """Nothing runs behind the caller's back, so there is nothing to wait for."""

    def synchronize(self) -> None:
        """As above."""


def _replace(owner: Any, name: str, replacement: Any) -> None:
    _saved.append((owner, name, getattr(owner, name)))
    setattr(owner, name, replacement)


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            kwargs["device"] = "cpu"
        return factory(*args, **kwargs)

    return make


def _type_as_cuda(original: Callable[..., Any]) -> Callable[..., Any]:
    def type_(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        answer = original(tensor, *args, **kwargs)
        if args or kwargs or not isinstance(answer, str) or not tensor.is_floating_point():
            return answer
        return answer.replace("torch.", "torch.cuda.", 1)

    return type_


@contextlib.contextmanager
def _fork_nothing(_tracker: object, _name: str = "") -> Iterator[None]:
    yield


def _import_megatron_without_compiling() -> None:
    compile_ = torch.compile

    def identity(function: Any = None, **_options: Any) -> Any:
        return function if function is not None else lambda decorated: decorated

    torch.compile = identity  # type: ignore[assignment]
    try:
        import megatron.core.jit

        megatron.core.jit.disable_jit_fuser()
        import megatron.core.distributed
        import megatron.core.models.gpt
        import megatron.core.optimizer
        import megatron.core.pipeline_parallel
    finally:
        torch.compile = compile_
