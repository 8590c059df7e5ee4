"""YAML bodies as Kubernetes reads them: JSON is tried first, 1e-6 is a number, and a date stays a string."""

import json
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML reads YAML 1.1's timestamps as dates, and floats without a point as strings; Go's decoder does not."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _no_constant(name: str) -> None:
    raise ValueError(f"invalid character {name[0]!r} looking for beginning of value")


def load_json(raw: bytes) -> Any:
    """Decode one JSON document, in which NaN and Infinity are no numbers. Raises ValueError."""
    return json.loads(raw, parse_constant=_no_constant)


def load(raw: bytes) -> Any:
    """Decode one YAML or JSON document. Raises ValueError or yaml.YAMLError."""
    try:
        return load_json(raw)
    except ValueError:
        return yaml.load(raw, Loader=_Loader)
