"""The base of every resource model and the field types that Kubernetes gives a meaning of its own."""

import re
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

QUANTITY_PATTERN = r"^([0-9]+|[0-9]+\.[0-9]+)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][0-9]{1,2})?$"
_ANY_QUANTITY = re.compile(
    r"([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,3})?"
)
"""The grammar of k8s.io/apimachinery/pkg/api/resource, which is wider than what the specs here accept."""
_SUFFIXES = {
    "": Decimal(1),
    "n": Decimal("0.000000001"),
    "u": Decimal("0.000001"),
    "m": Decimal("0.001"),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "T": Decimal(10) ** 12,
    "P": Decimal(10) ** 15,
    "E": Decimal(10) ** 18,
    "Ki": Decimal(1024),
    "Mi": Decimal(1024) ** 2,
    "Gi": Decimal(1024) ** 3,
    "Ti": Decimal(1024) ** 4,
    "Pi": Decimal(1024) ** 5,
    "Ei": Decimal(1024) ** 6,
}


class Strict(BaseModel):
    """A part of a resource: camelCase in manifests, snake_case in Python, unknown fields refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)

    def to_manifest(self) -> dict[str, Any]:
        """This part as it stands in a manifest: camelCase names, absent fields left out, defaults filled in."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Passthrough(BaseModel):
    """An object of the Kubernetes API handed on as it is; only the declared fields are read here."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="allow",
        frozen=True,
        json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
    )


def parse_quantity(text: str) -> Decimal:
    """The number that a quantity of our specs such as '16Gi' or '500m' stands for. Raises ValueError."""
    if not re.fullmatch(QUANTITY_PATTERN, text):
        raise ValueError(f"not a Kubernetes quantity: {text!r}")
    return read_quantity(text)


def read_quantity(text: str) -> Decimal:
    """The number that any quantity that the API server stores stands for, also '100e-3' or '5n'. Raises ValueError."""
    match = _ANY_QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"not a Kubernetes quantity: {text!r}")
    number, suffix = match[1], match[2] or ""
    if suffix[:1] in {"e", "E"} and suffix not in _SUFFIXES:
        return Decimal(number).scaleb(int(suffix[1:]))
    return Decimal(number) * _SUFFIXES[suffix]


def parse_quantity_bytes(text: str) -> int:
    """Bytes of a memory quantity such as '16Gi'. Raises ValueError."""
    return int(parse_quantity(text))


def _quantity_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_INT_OR_STRING: dict[str, Any] = {
    "x-kubernetes-int-or-string": True,
    "anyOf": [{"type": "integer"}, {"type": "string"}],
}

Quantity = Annotated[
    str,
    BeforeValidator(_quantity_text),
    Field(pattern=QUANTITY_PATTERN, max_length=32),
    WithJsonSchema({**_INT_OR_STRING, "pattern": QUANTITY_PATTERN, "maxLength": 32}),
]
"""A Kubernetes quantity; a plain integer in a manifest is taken as its text."""

Auto = Literal["auto"]
IntOrAuto = Annotated[
    Annotated[int, Field(ge=1, le=65536)] | Auto,
    WithJsonSchema(
        {
            **_INT_OR_STRING,
            "pattern": "^auto$",
            "minimum": 1,
            "maximum": 65536,
            "maxLength": 4,
        }
    ),
]
"""A positive number, or 'auto' to let the planner choose."""

RawObject = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
"""An object of the Kubernetes API that Trireme does not look into."""

ObjectName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
"""The name of a Kubernetes object."""

S3Uri = Annotated[str, Field(min_length=6, max_length=1024, pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$")]
"""s3://bucket or s3://bucket/prefix."""

Glob = Annotated[str, Field(min_length=1, max_length=256)]
"""A path pattern relative to a source: * within a folder, ** over folders."""
