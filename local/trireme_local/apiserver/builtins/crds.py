"""CustomResourceDefinitions: their own rules, conditions and accepted names."""

from __future__ import annotations

from typing import Any

from .. import cel, errors, names, structural, tables
from ..errors import Cause
from ..resource import Column, WithStatus, now
from ..store import Obj

CLEANUP_FINALIZER = "customresourcecleanup.apiextensions.k8s.io"
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_FORBIDDEN_KEYS = ("$ref", "definitions", "dependencies", "patternProperties", "additionalItems", "uniqueItems", "id")


class CrdStrategy(WithStatus):
    """CustomResourceDefinitions."""

    has_generation = True
    unconditional_update = False
    columns = (tables.NAME, Column("Created At", "date", description="CreationTimestamp of the definition."))

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        kind_names = spec.get("names", {})
        if kind := kind_names.get("kind"):
            kind_names.setdefault("singular", kind.lower())
            kind_names.setdefault("listKind", f"{kind}List")
        spec.setdefault("conversion", {"strategy": "None"})

    def prepare_create(self, obj: Obj) -> None:
        spec = obj["spec"]
        stored = [version["name"] for version in spec.get("versions", ()) if version.get("storage")]
        # The names are accepted, and the kind is served, after the answer to this request.
        obj["status"] = {"acceptedNames": {"kind": "", "plural": ""}, "storedVersions": stored}
        finalizers = obj["metadata"].setdefault("finalizers", [])
        if CLEANUP_FINALIZER not in finalizers:
            finalizers.append(CLEANUP_FINALIZER)

    @staticmethod
    def established(crd: Obj) -> Obj:
        """The CRD with the status that it has once it is served."""
        conditions = [
            _condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            _condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]
        status = {**crd["status"], "conditions": conditions, "acceptedNames": crd["spec"].get("names", {})}
        return {**crd, "status": status}

    def prepare_update(self, new: Obj, old: Obj) -> None:
        super().prepare_update(new, old)
        status = dict(new.get("status", {}))
        status["acceptedNames"] = new["spec"].get("names", {})
        stored = list(status.get("storedVersions", []))
        stored += [
            version["name"]
            for version in new["spec"].get("versions", ())
            if version.get("storage") and version["name"] not in stored
        ]
        status["storedVersions"] = stored
        new["status"] = status

    def validate(self, obj: Obj) -> list[Cause]:
        spec, found = obj["spec"], []
        group, kind_names = spec.get("group", ""), spec.get("names", {})
        for key in ("plural", "kind"):
            if not kind_names.get(key):
                found.append(errors.required(f"spec.names.{key}"))
        if not group:
            found.append(errors.required("spec.group"))
        if spec.get("scope") not in ("Cluster", "Namespaced"):
            found.append(errors.unsupported_value("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced")))
        expected = f"{kind_names.get('plural', '')}.{group}"
        if obj["metadata"].get("name") != expected:
            text = 'must be spec.names.plural+"."+spec.group'
            found.append(errors.invalid_value("metadata.name", obj["metadata"].get("name", ""), text))
        for key in ("plural", "singular", "kind", "listKind"):
            value = kind_names.get(key, "x").lower()
            found += [errors.invalid_value(f"spec.names.{key}", value, text) for text in names.dns_1035(value)]
        if spec.get("preserveUnknownFields"):
            text = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in the schema instead"
            found.append(errors.invalid_value("spec.preserveUnknownFields", True, text))
        if spec["conversion"].get("strategy") != "None":
            text = "only the None conversion strategy is supported by this API server"
            found.append(errors.invalid_value("spec.conversion.strategy", spec["conversion"].get("strategy"), text))
        versions = spec.get("versions", [])
        if sum(bool(version.get("storage")) for version in versions) != 1:
            found.append(
                errors.invalid_value(
                    "spec.versions", versions, "must have exactly one version marked as storage version"
                )
            )
        for index, version in enumerate(versions):
            found += _validate_version(version, f"spec.versions[{index}]")
        return found

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        found = self.validate(new)
        for path in (("group",), ("scope",), ("names", "kind"), ("names", "plural")):
            before: Any = old["spec"]
            after: Any = new["spec"]
            for key in path:
                before, after = before.get(key), after.get(key)
            if before != after:
                found.append(errors.invalid_value("spec." + ".".join(path), after, "field is immutable"))
        served = {version["name"] for version in new["spec"].get("versions", ())}
        for index, name in enumerate(old.get("status", {}).get("storedVersions", ())):
            if name not in served:
                text = "must appear in spec.versions"
                found.append(errors.invalid_value(f"status.storedVersions[{index}]", name, text))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        return [obj["metadata"]["name"], obj["metadata"].get("creationTimestamp")]


def _condition(kind: str, reason: str, message: str) -> Obj:
    return {"type": kind, "status": "True", "lastTransitionTime": now(), "reason": reason, "message": message}


def _validate_version(version: Obj, field: str) -> list[Cause]:
    found = [errors.invalid_value(f"{field}.name", version["name"], text) for text in names.dns_1035(version["name"])]
    schema = version.get("schema", {}).get("openAPIV3Schema")
    if schema is None:
        found.append(errors.required(f"{field}.schema.openAPIV3Schema", "schemas are required"))
        return found
    at = f"{field}.schema.openAPIV3Schema"
    if schema.get("type") != "object":
        found.append(errors.invalid_value(f"{at}.type", schema.get("type", ""), "must be object at the root"))
    found += _validate_schema(schema, at, root=True)
    found += cel.validate_rules(schema, at)
    if not found:  # defaults are tried on a schema that works
        found += _validate_defaults(schema, at)
    if "scale" in version.get("subresources", {}):
        found += _validate_scale(version["subresources"]["scale"], f"{field}.subresources.scale")
    for index, column in enumerate(version.get("additionalPrinterColumns", ())):
        below = f"{field}.additionalPrinterColumns[{index}]"
        if column.get("type") not in ("integer", "number", "string", "boolean", "date"):
            supported = ("boolean", "date", "integer", "number", "string")
            found.append(errors.unsupported_value(f"{below}.type", column.get("type", ""), supported))
        try:
            tables.parse_json_path(column.get("jsonPath", ""))
        except ValueError as error:
            found.append(errors.invalid_value(f"{below}.jsonPath", column.get("jsonPath", ""), str(error)))
    return found


def _validate_scale(scale: Obj, field: str) -> list[Cause]:
    """Where a custom resource keeps its replicas: simple paths of fields below spec and status."""
    found = []
    for key, below, needed in (
        ("specReplicasPath", (".spec.",), True),
        ("statusReplicasPath", (".status.",), True),
        ("labelSelectorPath", (".spec.", ".status."), False),
    ):
        path = scale.get(key, "")
        if not path:
            found += [errors.required(f"{field}.{key}")] if needed else []
        elif not path.startswith(below):
            text = f"should be a json path under {' or '.join(item.rstrip('.') for item in below)}"
            found.append(errors.invalid_value(f"{field}.{key}", path, text))
        elif "[" in path:
            found.append(errors.invalid_value(f"{field}.{key}", path, "must be a simple json path: no array notation"))
    return found


def _validate_schema(schema: Obj, field: str, root: bool = False) -> list[Cause]:
    """Whether a schema is structural."""
    found: list[Cause] = []
    typed = schema.get("type")
    free = schema.get("x-kubernetes-int-or-string") or schema.get("x-kubernetes-preserve-unknown-fields")
    if not typed and not free:
        found.append(errors.required(f"{field}.type", "must not be empty for specified object fields"))
    elif typed and typed not in _TYPES:
        found.append(errors.unsupported_value(f"{field}.type", typed, _TYPES))
    found += [errors.forbidden_value(f"{field}.{key}", "not supported") for key in _FORBIDDEN_KEYS if schema.get(key)]
    if schema.get("properties") and schema.get("additionalProperties"):
        text = "additionalProperties and properties are mutual exclusive"
        found.append(errors.forbidden_value(f"{field}.additionalProperties", text))
    if typed == "array" and not isinstance(schema.get("items"), dict):
        found.append(errors.required(f"{field}.items", "must be specified"))
    kind = schema.get("x-kubernetes-list-type")
    if kind not in (None, "atomic", "set", "map"):
        found.append(errors.unsupported_value(f"{field}.x-kubernetes-list-type", kind, ("atomic", "map", "set")))
    if kind == "map" and not schema.get("x-kubernetes-list-map-keys"):
        text = "must not be empty if x-kubernetes-list-type is map"
        found.append(errors.required(f"{field}.x-kubernetes-list-map-keys", text))
    if kind == "map" and isinstance(schema.get("items"), dict):
        items = schema["items"]
        for key in schema.get("x-kubernetes-list-map-keys", ()):
            known = items.get("properties", {}).get(key, {})
            if key not in items.get("required", ()) and "default" not in known:
                text = "a key of x-kubernetes-list-map-keys must have a default or be a required property"
                found.append(errors.required(f"{field}.items.properties[{key}].default", text))
    for name, sub in schema.get("properties", {}).items():
        if root and name in ("apiVersion", "kind", "metadata"):
            continue
        found += _validate_schema(sub, f"{field}.properties[{name}]")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found += _validate_schema(schema[key], f"{field}.{key}")
    return found


def _validate_defaults(schema: Obj, field: str) -> list[Cause]:
    """Whether every default satisfies schema and rules by itself: the defaults of fields below it are not filled in."""
    found: list[Cause] = []
    if "default" in schema:
        at, value, unknown = f"{field}.default", schema["default"], list[str]()
        structural.prune(schema, value, "", unknown)
        if unknown:
            found.append(errors.invalid_value(at, value, "must not have unknown fields"))
        rules = cel.Rules(schema)
        found += (
            structural.validate(structural.validator(schema), value, at)
            or rules.evaluate(value, value, at)
            or rules.evaluate(value, None, at)
        )
    for name, sub in schema.get("properties", {}).items():
        found += _validate_defaults(sub, f"{field}.properties[{name}]")
    if isinstance(schema.get("items"), dict):
        found += _validate_defaults(schema["items"], f"{field}.items")
    return found
