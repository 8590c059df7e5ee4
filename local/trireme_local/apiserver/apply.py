"""Server-side apply: merge, ownership, pruning and conflicts."""

from __future__ import annotations

import copy
from typing import Any

from . import errors, fieldset, managed
from .decode import DecodeError
from .fieldset import EMPTY, FieldSet
from .managed import Owner, Owners, Ownership
from .operations import Operations, WriteOptions
from .resource import Resource, now
from .store import Obj


def apply(
    operations: Operations,
    resource: Resource,
    namespace: str,
    name: str,
    body: Any,
    options: WriteOptions,
    subresource: str,
) -> tuple[Obj, bool]:
    """Apply a configuration; returns the stored object and whether it was created.

    Raises ApiError 400 for a malformed configuration, 409 for fields that another manager owns.
    """
    config = _configuration(resource, namespace, name, body, options)
    me = Owner(options.manager, "Apply", resource.api_version, subresource)
    where = managed.root(resource.strategy)
    configured = frozenset(fieldset.field_set(config, where))
    applied = managed.strip(configured, resource, subresource)
    entry = operations.store.get(resource.storage, namespace, name)
    if entry is None:
        if subresource or config["metadata"].get("uid"):
            raise errors.not_found(resource.group, resource.plural, name)
        config["metadata"].pop("resourceVersion", None)
        obj = operations.decode(resource, config, options)
        managed.write(obj, {me: Ownership(applied, now())})
        return operations.create_decoded(resource, namespace, obj, options, applied=True), True
    live = resource.to_served(entry.obj)
    owners = managed.read(live)
    last = owners.get(me, Ownership(EMPTY, ""))
    merged = fieldset.merge(live, config, where)
    # What identifies the object is owned by nobody, but it is configured, and so it stays.
    merged = _prune(merged, where, last.fields, configured, owners, me)
    owners = _settle(resource, live, merged, applied, owners, me, options.force, subresource)
    new = operations.decode(resource, copy.deepcopy(merged), options)
    managed.write(new, owners)
    return operations.replace(resource, namespace, name, new, options, subresource, applied=True), False


def _configuration(resource: Resource, namespace: str, name: str, body: Any, options: WriteOptions) -> Obj:
    if not isinstance(body, dict):
        raise errors.bad_request("error decoding YAML: the configuration is not an object")
    if body.get("apiVersion") != resource.api_version or body.get("kind") != resource.kind:
        got = f"{body.get('apiVersion')}, Kind={body.get('kind')}"
        text = f"Incorrect version specified in apply patch. Specified patch version: {got}"
        raise errors.bad_request(f"{text}, expected: {resource.api_version}, Kind={resource.kind}")
    config = copy.deepcopy(body)
    meta = config.setdefault("metadata", {})
    if meta.get("managedFields"):
        raise errors.bad_request("metadata.managedFields must be nil")
    if meta.setdefault("name", name) != name:
        text = f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
        raise errors.bad_request(text)
    if resource.namespaced and meta.setdefault("namespace", namespace) != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    try:
        decoded, unknown = resource.strategy.decode(config)
    except DecodeError as error:
        raise errors.bad_request(f"failed to create typed patch object ({namespace}/{name}): {error}") from None
    problems = [f".{path}: field not declared in schema" for path in unknown]
    problems += [
        f"{fieldset.show(path[:-1])}: duplicate entries for key {fieldset.show(path[-1:])}"
        for path in fieldset.duplicates(decoded, managed.root(resource.strategy))
    ]
    if problems:
        # Unlike other writes, an apply has to know the type of every field; nothing is pruned.
        where = f"({namespace}/{name}; {resource.api_version}, Kind={resource.kind})"
        raise errors.ApiError(500, "", f"failed to create typed patch object {where}: {', '.join(problems)}")
    return decoded


def _prune(merged: Obj, where: fieldset.Node, last: FieldSet, configured: FieldSet, owners: Owners, me: Owner) -> Obj:
    """Remove what this manager applied before, no longer applies, and nobody else owns."""
    held = configured.union(*(owned.fields for owner, owned in owners.items() if owner != me))
    gone = fieldset.with_ancestors(last) - fieldset.with_ancestors(held)
    if not gone:
        return merged
    pruned: Obj = fieldset.remove(merged, gone, where)
    return pruned


def _settle(
    resource: Resource,
    live: Obj,
    merged: Obj,
    applied: FieldSet,
    owners: Owners,
    me: Owner,
    force: bool,
    subresource: str,
) -> Owners:
    """The owners after this apply. Raises ApiError 409 for conflicts unless forced."""
    difference = fieldset.compare(live, merged, managed.root(resource.strategy))
    changed = managed.strip(difference.changed, resource, subresource)
    removed = managed.strip(difference.removed, resource, subresource)
    conflicts = {owner: owned.fields & changed for owner, owned in owners.items() if owner != me}
    conflicts = {owner: paths for owner, paths in conflicts.items() if paths}
    if conflicts and not force:
        raise _conflict(conflicts, owners)
    result: Owners = {}
    for owner, owned in owners.items():
        if owner != me:
            result[owner] = Ownership(owned.fields - removed - conflicts.get(owner, EMPTY), owned.time)
    mine = owners.get(me)
    result[me] = mine if mine and mine.fields == applied else Ownership(applied, now())
    return result


def _conflict(conflicts: dict[Owner, FieldSet], owners: Owners) -> errors.ApiError:
    causes, texts = [], []
    for owner, paths in sorted(conflicts.items(), key=lambda item: item[0].manager):
        who = f'"{owner.manager}"'
        if owner.subresource:
            who += f' with subresource "{owner.subresource}"'
        if owner.operation == "Update":
            who += f" using {owner.api_version} at {owners[owner].time}"
        shown = sorted(fieldset.show(path) for path in paths)
        causes += [{"reason": "FieldManagerConflict", "message": f"conflict with {who}", "field": at} for at in shown]
        texts += [f"conflicts with {who}:", *(f"- {at}" for at in shown)]
    if len(causes) == 1:
        message = f"Apply failed with 1 conflict: {causes[0]['message']}: {causes[0]['field']}"
    else:
        message = f"Apply failed with {len(causes)} conflicts: " + "\n".join(texts)
    return errors.ApiError(409, "Conflict", message, {"causes": causes})
