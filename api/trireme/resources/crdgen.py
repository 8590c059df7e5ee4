"""Write the CustomResourceDefinitions of all kinds: `python -m trireme.resources.crdgen --out crds/`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

from trireme.checkpoints import digest_bytes
from trireme.resources.common import MAX_JOB_NAME_LENGTH
from trireme.resources.kinds import GROUP, VERSION, KindInfo, all_kinds
from trireme.resources.schema import Schema, SchemaError, structural_schema

MAX_CRD_BYTES = 200 * 1024
"""`kubectl apply` keeps the whole manifest in an annotation, and annotations end at 256 KiB."""

SCHEMA_DIGEST = f"{GROUP}/schema-digest"
"""Annotation by which an operator tells whether the CRD that a cluster serves is that of its own version."""

NAME_RULES = (
    {
        "rule": f"self.metadata.name.size() <= {MAX_JOB_NAME_LENGTH}",
        "message": f"metadata.name must have at most {MAX_JOB_NAME_LENGTH} characters: it is part of the pods' names",
    },
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": "metadata.name must be a DNS label that begins with a letter: it begins the name of a Service",
    },
)


def crd(info: KindInfo[Any]) -> dict[str, Any]:
    """The CustomResourceDefinition of a kind."""
    body = _crd_spec(info)
    digest = digest_bytes(json.dumps(body, sort_keys=True).encode())
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": crd_name(info),
            "labels": {"app.kubernetes.io/name": "trireme", "app.kubernetes.io/part-of": "trireme"},
            "annotations": {SCHEMA_DIGEST: digest},
        },
        "spec": body,
    }


def crd_name(info: KindInfo[Any]) -> str:
    """Name of a kind's CustomResourceDefinition."""
    return f"{info.plural}.{GROUP}"


def _crd_spec(info: KindInfo[Any]) -> dict[str, Any]:
    spec = structural_schema(info.spec_model)
    for rule in info.rules:
        _add_rule(_node(spec, rule.path), {"rule": rule.rule, "message": rule.message})
    for path in info.mutable_paths:
        _node(spec, path)
    return {
        "group": GROUP,
        "scope": "Namespaced",
        "names": {
            "kind": info.kind,
            "listKind": f"{info.kind}List",
            "plural": info.plural,
            "singular": info.singular,
            "shortNames": list(info.short_names),
            "categories": ["all", "trireme"],
        },
        "versions": [
            {
                "name": VERSION,
                "served": True,
                "storage": True,
                "subresources": {"status": {}, **_scale(info)},
                "additionalPrinterColumns": [_column(info, i) for i in range(len(info.print_columns))],
                "schema": {"openAPIV3Schema": _root(info, spec)},
            }
        ],
    }


def _scale(info: KindInfo[Any]) -> dict[str, Any]:
    if info.scale is None:
        return {}
    paths = info.scale
    return {
        "scale": {
            "specReplicasPath": paths.spec_replicas,
            "statusReplicasPath": paths.status_replicas,
            "labelSelectorPath": paths.label_selector,
        }
    }


def _root(info: KindInfo[Any], spec: Schema) -> Schema:
    status = structural_schema(info.status_model, bounded=False, defaults=False)
    return {
        "description": info.description,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"Version of this form: {info.api_version}.", "type": "string"},
            "kind": {"description": f"Kind of this object: {info.kind}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [
            *(dict(rule) for rule in NAME_RULES),
            *(_immutable_rule(spec, path) for path in info.immutable_paths),
        ],
    }


def _column(info: KindInfo[Any], index: int) -> dict[str, Any]:
    column = info.print_columns[index]
    row: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "description": column.description,
        "jsonPath": column.json_path,
    }
    return {**row, "priority": column.priority} if column.priority else row


def _node(spec: Schema, path: str) -> Schema:
    """The schema at a dotted path. Raises SchemaError where the model has no such field."""
    node = spec
    for part in path.split(".") if path else []:
        try:
            node = node["properties"][part]
        except KeyError:
            raise SchemaError(f"spec.{path}: no field {part!r}") from None
    return node


def _add_rule(node: Schema, rule: dict[str, str]) -> None:
    node.setdefault("x-kubernetes-validations", []).append(rule)


def _immutable_rule(spec: Schema, path: str) -> dict[str, str]:
    """A transition rule of the root: only there can a rule see that the operator has accepted the job.

    Until then every field may be edited, so that a job that the planner refuses can be cured. Adding or removing a
    field is a change as well. An API server keeps the stored status when it updates the spec, and the other way round.
    """
    optional = [part for part in _prefixes(path) if not _always_there(spec, part)]
    here, there = (" && ".join(f"has({side}.spec.{part})" for part in optional) for side in ("self", "oldSelf"))
    same = f"self.spec.{path} == oldSelf.spec.{path}"
    if optional:
        same = f"({here} ? {there} && {same} : !({there}))"
    return {
        "rule": f"!has(oldSelf.status) || !has(oldSelf.status.resolved) || {same}",
        "message": f"{path} is immutable once the job is accepted",
        "fieldPath": f".spec.{path}",
    }


def _prefixes(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[: end + 1]) for end in range(len(parts))]


def _always_there(spec: Schema, path: str) -> bool:
    """Whether a field is there wherever its parent is: it is required, or the API server fills in its default."""
    parent, _, name = path.rpartition(".")
    node = _node(spec, parent)
    return name in node.get("required", []) or "default" in node["properties"][name]


class _Dumper(yaml.SafeDumper):
    """Lists indented under their key, no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render(info: KindInfo[Any]) -> str:
    """The YAML text of a kind's CRD. Raises SchemaError when it is too large for `kubectl apply`."""
    body = yaml.dump(crd(info), Dumper=_Dumper, sort_keys=False, width=110, allow_unicode=True)
    text = "# Generated from the models by `make crds`; do not edit.\n" + body
    if len(text.encode()) > MAX_CRD_BYTES:
        raise SchemaError(f"{info.plural}: {len(text.encode())} bytes, more than {MAX_CRD_BYTES}")
    return text


def file_name(info: KindInfo[Any]) -> str:
    """File of a kind's CRD in crds/."""
    return f"{GROUP}_{info.plural}.yaml"


def main(argv: list[str] | None = None) -> int:
    """Write one file per kind; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    out: Path = parser.parse_args(argv).out
    out.mkdir(parents=True, exist_ok=True)
    for info in all_kinds():
        (out / file_name(info)).write_text(render(info))
    return 0


if __name__ == "__main__":
    sys.exit(main())
