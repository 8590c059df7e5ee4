"""The OpenAPI v2 document in protobuf, as far as kubectl reads it.

kubectl falls back to this encoding, and to no other, when a kind is not in OpenAPI v3: to find out whether the server
validates fields itself. It looks at the PATCH operation of each path, its kind and its parameters. Field numbers are
those of gnostic's public openapi_v2 message; definitions are left out, they are read from OpenAPI v3.
"""

from __future__ import annotations

from collections.abc import Iterable

from .store import Obj

MEDIA_TYPE = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
# Go's MIME parser refuses the "@" of the type that it asks for.
CONTENT_TYPE = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, value: bytes | str) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _extension(name: str, yaml_text: str) -> bytes:
    return _field(1, name) + _field(2, _field(2, yaml_text))


def _parameter(name: str) -> bytes:
    query = _field(2, "query") + _field(4, name) + _field(6, "string")
    return _field(1, _field(2, _field(3, query)))


def _operation(operation: Obj) -> bytes:
    kind = operation["x-kubernetes-group-version-kind"]
    text = "".join(f'{key}: "{value}"\n' for key, value in kind.items())
    names: Iterable[str] = (item["name"] for item in operation.get("parameters", ()) if item["in"] == "query")
    parameters = b"".join(_field(8, _parameter(name)) for name in names)
    return parameters + _field(13, _extension("x-kubernetes-group-version-kind", text))


def document(swagger: Obj) -> bytes:
    """The protobuf form of a Swagger document's info and PATCH operations."""
    info = _field(1, swagger["info"]["title"]) + _field(2, swagger["info"]["version"])
    paths = b"".join(
        _field(2, _field(1, path) + _field(2, _field(8, _operation(item["patch"]))))
        for path, item in swagger["paths"].items()
        if "patch" in item
    )
    return _field(1, swagger["swagger"]) + _field(2, info) + _field(8, paths)
