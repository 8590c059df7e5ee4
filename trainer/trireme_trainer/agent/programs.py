"""The trainer programs an agent can run; a new kind adds a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Program:
    """The modules of one program, run with python -m."""

    ranks: str
    preparation: str
    start_from: tuple[str, ...] = ()
    """Where the spec names a checkpoint or model whose weights training starts from."""

    def starting_uri(self, spec: dict[str, Any]) -> str | None:
        """The URI that the spec names there, if any."""
        place: Any = spec
        for name in self.start_from:
            place = place.get(name) if isinstance(place, dict) else None
        return place if isinstance(place, str) else None


PROGRAMS = {
    "pretrain": Program(
        ranks="trireme_trainer.pretrain",
        preparation="trireme_trainer.pretrain.prepare",
        start_from=("model", "startFrom"),
    ),
}


class UnknownProgram(ValueError):
    """This trainer has no such program."""


def find_program(name: str) -> Program:
    """The program of that name. Raises UnknownProgram."""
    try:
        return PROGRAMS[name]
    except KeyError:
        raise UnknownProgram(f"program {name!r} is not in this trainer: {', '.join(PROGRAMS)}") from None
