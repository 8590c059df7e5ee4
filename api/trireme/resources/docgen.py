"""Write the field reference of each kind: `python -m trireme.resources.docgen --out docs/reference`.

The pages come from the CRDs, and so from the models, and hold nothing that was written by hand.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trireme.resources.crdgen import crd
from trireme.resources.kinds import KindInfo, all_kinds
from trireme.resources.schema import Schema

NOTE = "<!-- Generated from the models by `make reference`; do not edit. -->"
_HEAD = "| Field | Type | Default | Allowed | Meaning |\n|---|---|---|---|---|"
_STATUS_HEAD = "| Field | Type | Values | Meaning |\n|---|---|---|---|"


def page(info: KindInfo[Any]) -> str:
    """The page of a kind in Markdown: names, columns, every field of spec and status, and the rules between them."""
    body = crd(info)["spec"]
    root = body["versions"][0]["schema"]["openAPIV3Schema"]
    spec, status = root["properties"]["spec"], root["properties"]["status"]
    parts = [
        f"# {info.kind}: all fields\n\n{NOTE}\n",
        f"{info.description} How it is used: [{info.kind}](../{info.singular}.md).\n",
        *_names(info, body),
        f"{_may_change(info)}\n",
        "A type that is a link is an object with a table of its own below; a *free form* object has none.\n",
        "## Spec\n",
        *_sections("spec", spec, info),
        "## Rules\n",
        "The API server refuses what breaks one of these:\n",
        *_rules(root, ""),
        "\n## Status\n",
        "Written by the operator; a field is absent until there is something to say.\n",
        *_sections("status", status, info),
    ]
    return "\n".join(parts).rstrip("\n") + "\n"


def _names(info: KindInfo[Any], body: Schema) -> Iterator[str]:
    version = body["versions"][0]
    names = body["names"]
    yield "| | |\n|---|---|"
    yield f"| `apiVersion` | `{info.api_version}` |"
    yield f"| `kind` | `{info.kind}` |"
    yield f"| Name in URLs and `kubectl` | `{names['plural']}`, `{names['singular']}`, {_codes(names['shortNames'])} |"
    yield f"| Categories | {_codes(names['categories'])} |"
    yield f"| Subresources | {_codes(sorted(version['subresources']))} |"
    columns = version["additionalPrinterColumns"]
    yield f"| Columns of `kubectl get` | {_codes(c['name'] for c in columns if not c.get('priority'))} |"
    wide = [column["name"] for column in columns if column.get("priority")]
    yield (f"| With `-o wide` also | {_codes(wide)} |\n" if wide else "")


def _codes(words: Any) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _may_change(info: KindInfo[Any]) -> str:
    if info.immutable_paths:
        return (
            "Fields marked *live* may change while the job runs; all others are immutable once it is accepted "
            "(`status.resolved` is there)."
        )
    return "Every field of the spec may change at any time."


def _sections(path: str, schema: Schema, info: KindInfo[Any]) -> Iterator[str]:
    """A table for an object, and after it those of the objects in it."""
    yield _section(path, schema, info)
    for name, child in schema["properties"].items():
        inner = child.get("items", child)
        if inner.get("properties"):
            yield from _sections(_below(path, name, child), inner, info)


def _below(path: str, name: str, child: Schema) -> str:
    return f"{path}.{name}" + ("[]" if "items" in child else "")


def _section(path: str, schema: Schema, info: KindInfo[Any]) -> str:
    lines = [f"### {path}", ""]
    if "." in path and schema.get("description"):
        lines += [schema["description"], ""]
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        lines += ["Further fields, those that Kubernetes' API knows here, are handed on as they are.", ""]
    of_spec = path.startswith("spec")
    lines.append(_HEAD if of_spec else _STATUS_HEAD)
    for name, child in schema["properties"].items():
        kind = _type(child, _below(path, name, child))
        meaning = _cell(str(child.get("description", "")))
        if not of_spec:
            lines.append(f"| `{name}` | {kind} | {_allowed(child, limits=False)} | {meaning} |")
            continue
        default = "required" if name in schema.get("required", []) else _default(child)
        live = " *Live.*" if _is_live(f"{path}.{name}", info) else ""
        lines.append(f"| `{name}` | {kind} | {default} | {_allowed(child)} | {meaning}{live} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that a table's cell can hold: no bar ends it, and words in angle brackets are no HTML."""
    return re.sub(r"<([a-z-]+)>", r"`<\1>`", text).replace("|", "\\|")


def _is_live(path: str, info: KindInfo[Any]) -> bool:
    """Whether a field of a job steers it while it runs, by itself or with the part that it belongs to."""
    own = path.removeprefix("spec.")
    mutable = any(own == part or own.startswith(f"{part}.") for part in info.mutable_paths)
    return mutable and bool(info.immutable_paths)


def _default(schema: Schema) -> str:
    if "default" not in schema or schema["default"] in ({}, []):
        return ""
    value = schema["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(schema: Schema, path: str) -> str:
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or `auto`" if schema.get("pattern") == "^auto$" else "quantity"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'], path)}"
    if schema.get("properties"):
        return f"[object](#{re.sub(r'[^a-z0-9_-]', '', path.lower())})"
    if "additionalProperties" in schema:
        return f"map to {_type(schema['additionalProperties'], path)}"
    if schema.get("type") == "object":
        return "object, free form"
    return "time" if schema.get("format") == "date-time" else str(schema["type"])


def _allowed(schema: Schema, *, limits: bool = True) -> str:
    """The values that a field takes; without `limits`, of a status, its words only."""
    if "enum" in schema:
        return _codes(schema["enum"])
    if schema.get("type") == "array":
        inner = _allowed(schema["items"], limits=limits)
        count = _between(schema.get("minItems"), schema.get("maxItems"), "items") if limits else ""
        return "; each ".join(part for part in (count, inner) if part)
    if not limits:
        return ""
    if schema.get("x-kubernetes-int-or-string"):
        return _range(schema) if "minimum" in schema else "for example `500m`, `16Gi`"
    if "additionalProperties" in schema:
        return _between(None, schema.get("maxProperties"), "entries")
    if schema.get("type") == "string":
        length = _between(schema.get("minLength"), schema.get("maxLength"), "characters")
        pattern = f"`{schema['pattern']}`".replace("|", "\\|") if "pattern" in schema else ""
        return ", ".join(part for part in (length, pattern) if part)
    return _range(schema)


def _between(low: int | None, high: int | None, unit: str) -> str:
    if high is None:
        return f"at least {low:,} {unit}" if low else ""
    return f"{low:,} to {high:,} {unit}" if low else f"at most {high:,} {unit}"


def _range(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    above = "" if low is None else f"{'>' if schema.get('exclusiveMinimum') else '>='} {_number(low)}"
    below = "" if high is None else f"{'<' if schema.get('exclusiveMaximum') else '<='} {_number(high)}"
    return ", ".join(part for part in (above, below) if part)


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _rules(schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:
            yield f"- `{path.removeprefix('.') or 'metadata'}`: {_cell(rule['message'])}"
    for name, child in schema.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def file_name(info: KindInfo[Any]) -> str:
    """File of a kind's page in docs/reference/."""
    return f"{info.singular}.md"


def main(argv: list[str] | None = None) -> int:
    """Write the pages of all kinds; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the pages")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for info in all_kinds():
        (out / file_name(info)).write_text(page(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
