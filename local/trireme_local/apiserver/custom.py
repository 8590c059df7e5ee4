"""Custom resources: the resources that a CustomResourceDefinition adds, and their strategy."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

from . import definitions, structural
from .cel import Rules
from .decode import Decoder
from .definitions import Schema
from .errors import Cause, invalid_value
from .resource import STATUS_VERBS, Column, Resource, Strategy, Subresource
from .store import Obj
from .tables import AGE, NAME, custom_cell, object_age

# Rules are not tried on an object with such an error. Source: hasBlockingErr of apiextensions-apiserver.
_BLOCKING = {f"FieldValue{what}" for what in ("NotSupported", "Required", "TooLong", "TooMany", "TypeInvalid")}
_NOT_CHECKED = invalid_value(
    "<nil>",
    "null",
    "some validation rules were not checked because the object was invalid; "
    "correct the existing errors to complete validation",
)


class CustomStrategy(Strategy):
    """Objects of one version of a CRD."""

    has_generation = True
    unconditional_update = False
    strategic_merge = False

    def __init__(self, version: Obj) -> None:
        super().__init__()
        self._schema: Schema = version.get("schema", {}).get("openAPIV3Schema") or {"type": "object"}
        self._body: Schema = {
            **self._schema,
            "properties": {
                key: sub
                for key, sub in self._schema.get("properties", {}).items()
                if key not in ("apiVersion", "kind", "metadata")
            },
        }
        self._has_status = "status" in version.get("subresources", {})
        printer = version.get("additionalPrinterColumns")
        self._extra = [
            Column(
                item["name"],
                item["type"],
                item.get("format", ""),
                item.get("description", f"Custom resource definition column (in JSONPath format): {item['jsonPath']}"),
                item.get("priority", 0),
                item["jsonPath"],
            )
            for item in printer or ()
        ]
        self.columns = (NAME, *self._extra) if printer else (NAME, AGE)

    @property
    def schema(self) -> Schema:
        return self._schema

    @cached_property
    def _validator(self) -> Any:
        return structural.validator(self._body)

    @cached_property
    def _rules(self) -> Rules:
        return Rules(self._schema)

    @property
    def body_schema(self) -> Schema:
        """The schema without apiVersion, kind and metadata."""
        return self._body

    def decode(self, obj: Obj) -> tuple[Obj, list[str]]:
        """Prune what the schema does not specify; metadata is decoded as ObjectMeta."""
        decoder = Decoder()
        meta = decoder.decode(obj.get("metadata") or {}, definitions.named(definitions.OBJECT_META), "metadata")
        unknown = list(decoder.unknown)
        rest = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
        pruned = structural.prune(self._body, rest, "", unknown)
        head = {"apiVersion": obj.get("apiVersion"), "kind": obj.get("kind"), "metadata": meta}
        return {**head, **copy.deepcopy(pruned)}, unknown

    def default(self, obj: Obj) -> None:
        structural.apply_defaults(self._body, obj)

    def prepare_create(self, obj: Obj) -> None:
        if self._has_status:
            obj.pop("status", None)
            structural.apply_defaults(self._body, obj)

    def prepare_update(self, new: Obj, old: Obj) -> None:
        if self._has_status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]

    def prepare_status_update(self, new: Obj, old: Obj) -> None:
        super().prepare_status_update(new, old)
        # Of metadata, a custom resource's /status only writes managedFields.
        managed = new["metadata"].get("managedFields")
        new["metadata"] = {**old["metadata"], "resourceVersion": new["metadata"].get("resourceVersion")}
        if managed is not None:
            new["metadata"]["managedFields"] = managed

    def generation_changed(self, new: Obj, old: Obj) -> bool:
        skipped = ("metadata", "status") if self._has_status else ("metadata",)
        keys = (set(new) | set(old)) - set(skipped)
        return any(new.get(key) != old.get(key) for key in keys)

    def _structure(self, obj: Obj) -> list[Cause]:
        body = {key: value for key, value in obj.items() if key not in ("apiVersion", "kind", "metadata")}
        found = structural.validate(self._validator, body)
        return found + structural.validate_list_types(self._body, body, "")

    def _with_rules(self, found: list[Cause], new: Obj, old: Obj | None) -> list[Cause]:
        if any(cause.reason in _BLOCKING for cause in found):
            return [*found, _NOT_CHECKED]
        return found + self._rules.evaluate(new, old)

    def validate(self, obj: Obj) -> list[Cause]:
        return self._with_rules(self._structure(obj), obj, None)

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        found = self._structure(new)
        if found:
            # Ratcheting: what was already wrong and did not change does not stop an update.
            before = set(self._structure(old))
            found = [cause for cause in found if cause not in before]
        return self._with_rules(found, new, old)

    def validate_status_update(self, new: Obj, old: Obj) -> list[Cause]:
        return self.validate_update(new, old)

    def cells(self, obj: Obj) -> list[Any]:
        name = obj["metadata"]["name"]
        if not self._extra:
            return [name, object_age(obj)]
        return [name, *(custom_cell(obj, column) for column in self._extra)]


def resources(crd: Obj) -> list[Resource]:
    """The resources that a CRD serves, one per served version."""
    spec = crd["spec"]
    kind_names = spec["names"]
    found = []
    for version in spec["versions"]:
        if not version.get("served"):
            continue
        resource = Resource(
            spec["group"],
            version["name"],
            kind_names["plural"],
            kind_names["kind"],
            spec["scope"] == "Namespaced",
            CustomStrategy(version),
            kind_names.get("singular", ""),
            tuple(kind_names.get("shortNames", ())),
            tuple(kind_names.get("categories", ())),
            list_kind=kind_names.get("listKind", ""),
            selectable_fields=frozenset(item["jsonPath"].lstrip(".") for item in version.get("selectableFields", ())),
            custom=True,
        )
        subresources = version.get("subresources", {})
        if "status" in subresources:
            resource.subresources["status"] = Subresource(resource.kind, STATUS_VERBS)
        if "scale" in subresources:
            resource.subresources["scale"] = Subresource("Scale", STATUS_VERBS, "autoscaling", "v1")
            resource.scale_paths = subresources["scale"]
        found.append(resource)
    return found
