"""Kubernetes quantities as exact numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

_PATTERN = re.compile(r"^([+-]?(?:\d+\.?\d*|\.\d+))(?:([KMGTPE]i)|([numkMGTPE])|[eE]([+-]?\d+))?$")
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


def parse(text: str) -> Fraction:
    """The exact value of a quantity. Raises ValueError when it is malformed."""
    match = _PATTERN.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a quantity")
    number, binary, decimal, exponent = match.groups()
    scale = Fraction(1)
    if binary:
        scale = Fraction(2) ** _BINARY[binary]
    elif decimal or exponent:
        scale = Fraction(10) ** (_DECIMAL[decimal] if decimal else int(exponent))
    return Fraction(number) * scale


def total(values: Iterable[str]) -> Fraction:
    """The sum of quantities."""
    return sum((parse(value) for value in values), Fraction(0))
