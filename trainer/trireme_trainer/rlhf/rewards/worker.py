"""A process that scores completions with code that may hang, crash or eat memory: python -m ...rewards.worker FD.

One JSON document a line, over a socket. The first tells what to score with, and is answered by {"ready": true}; each
that follows is a batch, and is answered by {"scores": [...]}. A failure is answered by {"error": kind, "message": text}.
"""

from __future__ import annotations

import json
import math
import os
import resource
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

Json = dict[str, Any]
Score = Callable[[Json], Json]
STARTED_WITH = 64 << 20
"""Room beside the given memory for what the interpreter itself allocates later."""


def limit_memory(limit_bytes: int) -> None:
    """Refuse this process memory beyond what it has now and `limit_bytes`."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + limit_bytes + STARTED_WITH
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def load_function(source: str, name: str) -> Score:
    """Of a user's Python. Raises what the source raises, and TypeError when it defines no function `reward`."""
    module = ModuleType(name)
    sys.modules[name] = module  # dataclasses and pickling look a class's module up
    exec(compile(source, f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    reward = getattr(module, "reward", None)
    if not callable(reward):
        raise TypeError("the source defines no function reward(prompts, completions, **fields)")

    def score(batch: Json) -> Json:
        found = reward(prompts=batch["prompts"], completions=batch["completions"], **batch["fields"])
        if isinstance(found, str | bytes | dict) or not hasattr(found, "__iter__"):
            return {"error": "malformed", "message": f"returned {type(found).__name__} and no list"}
        return {"scores": [_plain(one) for one in found]}

    return score


def _plain(score: Any) -> Any:
    """A number as JSON has it; NaN and infinities by their names, anything that is no number as text."""
    if hasattr(score, "item"):  # of NumPy and torch
        score = score.item()
    if isinstance(score, bool | int | float):
        return float(score) if math.isfinite(score) else str(float(score))
    return {"type": type(score).__name__}


def load_rule(kind: str, parameters: Mapping[str, Any]) -> Score:
    """Of a rule about texts. Raises RuleUnusable."""
    from trireme_trainer.rlhf.rewards.rules import rule_named

    rule = rule_named(kind, parameters)
    return lambda batch: {"scores": [rule(text) for text in batch["completions"]]}


def answer(act: Callable[[], Json]) -> Json:
    """What it answers, or how it failed."""
    try:
        return act()
    except MemoryError:
        return {"error": "memory", "message": "it needed more memory than it may have"}
    except BaseException as error:  # also SystemExit: the function is not asked to end this process
        trace = "".join(traceback.format_exception(error)[-3:])
        print(trace, file=sys.stderr, flush=True)
        return {"error": "raised", "message": f"{type(error).__name__}: {error}"[:1000]}


def main() -> None:
    """Serve until the socket closes."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    os.dup2(2, 1)  # what the function prints goes to the rank's log
    lines, score = channel.makefile("r", encoding="utf-8"), None
    given = json.loads(lines.readline())

    def start() -> Json:
        nonlocal score
        if given["kind"] == "function":
            score = load_function(given["source"], given["name"])
        else:
            score = load_rule(given["kind"], given["parameters"])
        return {"ready": True}

    limit_memory(given["memoryBytes"])
    said = answer(start)
    channel.sendall(json.dumps(said).encode() + b"\n")
    if score is None:
        return
    for line in lines:
        batch = json.loads(line)
        said = answer(lambda batch=batch: score(batch))  # type: ignore[misc]
        channel.sendall(json.dumps(said).encode() + b"\n")


if __name__ == "__main__":
    main()
