"""JSON, merge and strategic-merge patches."""

from __future__ import annotations

import copy
from typing import Any

import jsonpatch
import jsonpointer

from . import definitions, errors
from .definitions import Schema
from .store import Obj

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
MAX_JSON_PATCH_OPERATIONS = 10_000


def json_patch(obj: Obj, operations: Any) -> Obj:
    """Apply an RFC 6902 patch. Raises ApiError 400 when it is malformed, 422 when it does not apply."""
    if not isinstance(operations, list):
        raise errors.bad_request(
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        )
    if len(operations) > MAX_JSON_PATCH_OPERATIONS:
        text = f"the allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {len(operations)}"
        raise errors.ApiError(413, "RequestEntityTooLarge", text)
    try:
        patched: Obj = jsonpatch.JsonPatch(operations).apply(copy.deepcopy(obj))
    except jsonpatch.InvalidJsonPatch as error:
        raise errors.bad_request(f"error decoding patch: {error}") from None
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError) as error:
        text = f"the server rejected our request due to an error in our request: {error}"
        raise errors.ApiError(422, "Invalid", text, {}) from None
    return patched


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply an RFC 7386 patch; neither argument is changed."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def _strategies(schema: Schema) -> set[str]:
    return {part for part in schema.get("x-kubernetes-patch-strategy", "").split(",") if part}


def strategic_merge(target: Any, patch: Any, schema: Schema) -> Any:
    """Apply a strategic-merge patch by the merge keys of a schema. Raises ApiError 400 for a bad directive."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    resolved = definitions.resolve(schema)
    directive = patch.get("$patch")
    body = {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "replace":
        return copy.deepcopy(body)
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        raise errors.bad_request(f"Unknown patch type: {directive} found in strategic merge patch")
    result = dict(target) if isinstance(target, dict) else {}
    if "$retainKeys" in body:
        kept = body.pop("$retainKeys")
        result = {key: value for key, value in result.items() if key in kept}
    for key, value in body.items():
        if key.startswith(("$setElementOrder/", "$deleteFromPrimitiveList/")):
            continue
        if value is None:
            result.pop(key, None)
            continue
        sub = resolved.get("properties", {}).get(key) or resolved.get("additionalProperties") or {}
        if isinstance(value, list):
            order = body.get(f"$setElementOrder/{key}")
            result[key] = _merge_list(result.get(key), value, sub, key, order)
        elif isinstance(value, dict):
            replace = "replace" in _strategies(sub)
            result[key] = copy.deepcopy(value) if replace else strategic_merge(result.get(key), value, sub)
        else:
            result[key] = value
    _lists_without_items(result, body, resolved)
    return result


def _lists_without_items(result: Obj, patch: Obj, schema: Schema) -> None:
    """Directives about lists that the patch itself may not mention otherwise."""
    for key, value in patch.items():
        prefix, slash, name = key.partition("/")
        if not slash or not isinstance(result.get(name), list):
            continue
        if prefix == "$deleteFromPrimitiveList":
            result[name] = [item for item in result[name] if item not in value]
        elif prefix == "$setElementOrder" and name not in patch:
            sub = schema.get("properties", {}).get(name, {})
            result[name] = _ordered(result[name], value, sub.get("x-kubernetes-patch-merge-key"))


def _merge_list(current: Any, patch: list[Any], schema: Schema, field: str, order: list[Any] | None) -> list[Any]:
    if "merge" not in _strategies(schema):
        return copy.deepcopy([item for item in patch if not (isinstance(item, dict) and "$patch" in item)])
    existing = list(current) if isinstance(current, list) else []
    if patch and not isinstance(patch[0], dict):
        merged = existing + [item for item in patch if item not in existing]
        return _ordered(merged, order, None)
    merge_key = schema.get("x-kubernetes-patch-merge-key", "")
    if any(item.get("$patch") == "replace" for item in patch):
        return [copy.deepcopy(item) for item in patch if "$patch" not in item]
    items = schema.get("items", {})
    for item in patch:
        if merge_key not in item:
            raise errors.bad_request(f"map: {item} does not contain declared merge key: {merge_key}")
        index = next((i for i, old in enumerate(existing) if old.get(merge_key) == item[merge_key]), None)
        if item.get("$patch") == "delete":
            existing = [old for old in existing if old.get(merge_key) != item[merge_key]]
        elif index is None:
            clean = {key: value for key, value in item.items() if key != "$patch"}
            existing.append(strategic_merge({}, clean, items))
        else:
            existing[index] = strategic_merge(existing[index], item, items)
    return _ordered(existing, order, merge_key)


def _ordered(items: list[Any], order: list[Any] | None, merge_key: str | None) -> list[Any]:
    """Items in the order that $setElementOrder gives; items it does not name keep their neighbourhood."""
    if not order:
        return items
    wanted = [item.get(merge_key) if isinstance(item, dict) and merge_key else item for item in order]

    def key_of(item: Any) -> Any:
        return item.get(merge_key) if merge_key and isinstance(item, dict) else item

    named = sorted((item for item in items if key_of(item) in wanted), key=lambda item: wanted.index(key_of(item)))
    result, queue = [], list(named)
    for item in items:
        # An item that only the server knows stays before the named items that followed it.
        result.append(item if key_of(item) not in wanted else queue.pop(0))
    return result
