"""Write the field reference of each kind into its page: `python -m trireme.resources.docgen --out docs/`."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trireme.resources.crdgen import crd
from trireme.resources.kinds import KindInfo, all_kinds
from trireme.resources.schema import Schema

BEGIN = "<!-- Below: generated from the models by `make crds`; do not edit. -->"


def reference(info: KindInfo[Any]) -> str:
    """Markdown: one table per part of the spec, one for the status, one for the rules."""
    root = crd(info)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    spec, status = root["properties"]["spec"], root["properties"]["status"]
    sections = [_section("spec", spec, info), *_sections("spec", spec, info)]
    sections += ["## Rules\n", *_rules(root, "")]
    sections += ["\n## Status\n", _section("status", status, info), *_sections("status", status, info)]
    return "\n".join(sections)


def _sections(path: str, schema: Schema, info: KindInfo[Any]) -> Iterator[str]:
    for name, child in schema.get("properties", {}).items():
        inner = child.get("items", child)
        inner_path = f"{path}.{name}" + ("[]" if inner is not child else "")
        if inner.get("properties"):
            yield _section(inner_path, inner, info)
            yield from _sections(inner_path, inner, info)


def _section(path: str, schema: Schema, info: KindInfo[Any]) -> str:
    lines = [f"### {path}", ""]
    if "." in path and schema.get("description"):
        lines += [schema["description"], ""]
    lines += ["| Field | Type | Default | Meaning |", "|---|---|---|---|"]
    for name, child in schema["properties"].items():
        required = name in schema.get("required", []) and path.startswith("spec")
        default = "required" if required else _default(child)
        text = str(child.get("description", "")).replace("|", "\\|")
        mark = " May change while the job runs." if _mutable(f"{path}.{name}", info) else ""
        lines.append(f"| `{name}` | {_type(child)} | {default} | {text}{mark} |")
    return "\n".join(lines) + "\n"


def _mutable(path: str, info: KindInfo[Any]) -> bool:
    return path.removeprefix("spec.") in info.mutable_paths


def _default(schema: Schema) -> str:
    if "default" not in schema or schema["default"] == {}:
        return ""
    value = schema["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or `auto`" if schema.get("pattern") == "^auto$" else "quantity"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}, at most {schema['maxItems']}" if "maxItems" in schema else "list"
    if schema.get("type") == "object":
        return f"map to {_type(schema['additionalProperties'])}" if "additionalProperties" in schema else "object"
    return _range(schema)


def _range(schema: Schema) -> str:
    kind = "time" if schema.get("format") == "date-time" else str(schema["type"])
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None and high is None:
        return kind
    above = "" if low is None else f"{'>' if schema.get('exclusiveMinimum') else '>='} {low:g}"
    below = "" if high is None else f"{'<' if schema.get('exclusiveMaximum') else '<='} {high:,}"
    return f"{kind} {', '.join(part for part in (above, below) if part)}"


def _rules(schema: Schema, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"]:
            yield f"- `{path.removeprefix('.') or 'metadata'}`: {rule['message']}"
    for name, child in schema.get("properties", {}).items():
        yield from _rules(child, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")


def page(existing: str, info: KindInfo[Any]) -> str:
    """A page with its written part kept and its reference renewed. Raises ValueError without the marker."""
    written, marker, _ = existing.partition(BEGIN)
    if not marker:
        raise ValueError(f"the page of {info.kind} has no line {BEGIN!r}")
    return f"{written}{BEGIN}\n\n## Fields\n\n{reference(info)}"


def main(argv: list[str] | None = None) -> int:
    """Renew the pages of all kinds; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder with the pages")
    out: Path = parser.parse_args(argv).out
    for info in all_kinds():
        file = out / f"{info.singular}.md"
        file.write_text(page(file.read_text(), info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
