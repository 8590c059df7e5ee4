"""The trainer programs an agent can run; a new kind adds a line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Program:
    """The modules of one program, run with python -m."""

    ranks: str
    preparation: str


PROGRAMS = {"pretrain": Program("trireme_trainer.pretrain", "trireme_trainer.pretrain.prepare")}


class UnknownProgram(ValueError):
    """This trainer has no such program."""


def find_program(name: str) -> Program:
    """The program of that name. Raises UnknownProgram."""
    try:
        return PROGRAMS[name]
    except KeyError:
        raise UnknownProgram(f"program {name!r} is not in this trainer: {', '.join(PROGRAMS)}") from None
