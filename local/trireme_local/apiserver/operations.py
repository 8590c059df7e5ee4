"""Create, update, patch and delete: what a write does to an object, whatever its kind."""

from __future__ import annotations

import copy
import ipaddress
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from . import admission, errors, managed, names
from .auth import User
from .builtins.services import CLUSTER_NETWORK
from .decode import DecodeError
from .registry import Registry
from .resource import Resource, now
from .store import Obj, Store, encode

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
_SUFFIX_LENGTH = 5
_MAX_OBJECT_BYTES = 1536 * 1024


@dataclass
class WriteOptions:
    """What a write request asks for besides the object."""

    user: User
    manager: str = "unknown"
    dry_run: bool = False
    validation: str = "Warn"  # Strict, Warn or Ignore
    force: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DeleteOptions:
    """metav1.DeleteOptions."""

    grace_seconds: int | None = None
    propagation: str | None = None
    uid: str | None = None
    version: str | None = None
    dry_run: bool = False


Hook = Callable[[Resource, Obj | None, Obj | None], None]
Guard = Callable[[User, Resource, Obj, Obj | None, str], None]


class Operations:
    """Writes to the store. All methods are synchronous, so that each is atomic on the event loop."""

    def __init__(
        self, store: Store, registry: Registry, service_network: ipaddress.IPv4Network = CLUSTER_NETWORK
    ) -> None:
        self.store, self.registry, self._service_network = store, registry, service_network
        self.hooks: list[Hook] = []
        self.guards: list[Guard] = []

    def current(self, resource: Resource, namespace: str, name: str) -> Obj:
        """The stored object. Raises ApiError 404."""
        entry = self.store.get(resource.storage, namespace, name)
        if entry is None:
            raise errors.not_found(resource.group, resource.plural, name)
        return entry.obj

    def decode(self, resource: Resource, body: Any, options: WriteOptions) -> Obj:
        """The stored form of a request body: typed, pruned, defaulted. Raises ApiError 400."""
        if not isinstance(body, dict):
            raise errors.bad_request("couldn't get version/kind; json parse error: the body is not an object")
        kind, version = body.get("kind"), body.get("apiVersion")
        if resource.custom and not kind:
            raise errors.bad_request("Object 'Kind' is missing in the request body")
        if version and version != resource.api_version:
            expected = f"the expected API version ({resource.api_version})"
            text = f"the API version in the data ({version}) does not match {expected}"
            raise errors.bad_request(text)
        if kind and kind != resource.kind:
            text = f'{kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            raise errors.bad_request(text)
        body = {**body, "apiVersion": resource.api_version, "kind": resource.kind}
        try:
            decoded, unknown = resource.strategy.decode(body)
        except DecodeError as error:
            text = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: {error}'
            raise errors.bad_request(text) from None
        if unknown and options.validation == "Strict":
            listed = ", ".join(f'unknown field "{path}"' for path in unknown)
            what = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}'
            text = f"{what}: strict decoding error: {listed}"
            raise errors.bad_request(text)
        if options.validation == "Warn":
            options.warnings += [f'unknown field "{path}"' for path in unknown]
        decoded.setdefault("metadata", {})
        stored = resource.to_stored(decoded)
        resource.strategy.default(stored)
        return stored

    def create(self, resource: Resource, namespace: str, body: Any, options: WriteOptions) -> Obj:
        """Create an object from a request body; returns the stored object."""
        obj = self.decode(resource, body, options)
        return self.create_decoded(resource, namespace, obj, options)

    def create_decoded(
        self, resource: Resource, namespace: str, obj: Obj, options: WriteOptions, applied: bool = False
    ) -> Obj:
        """Create an object that is already in stored form."""
        meta = obj["metadata"]
        _match_namespace(resource, namespace, meta)
        if meta.get("resourceVersion") not in (None, "", "0"):
            raise errors.ApiError(500, "", "resourceVersion should not be set on objects to be created")
        if resource.custom and self.registry.is_terminating(resource):
            text = "create not allowed while custom resource definition is terminating"
            raise errors.ApiError(405, "MethodNotAllowed", text)
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = self._generate(resource, namespace, meta["generateName"])
            resource.strategy.default(obj)
        admission.check_namespace(self.store, resource, namespace, meta.get("name", ""))
        for key in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"):
            meta.pop(key, None)
        if not applied:
            meta.pop("managedFields", None)
        meta["uid"] = str(uuid.uuid4())
        meta["creationTimestamp"] = now()
        meta.pop("generation", None)
        if resource.strategy.has_generation:
            meta["generation"] = 1
        if not applied:
            managed.track(resource, obj, None, options.manager, "")
        admission.mutate_create(self.store, resource, obj, options.user)
        resource.strategy.prepare_create(obj)
        self._validate(resource, obj, None)
        for guard in self.guards:
            guard(options.user, resource, obj, None, "")
        name = meta["name"]
        if self.store.get(resource.storage, namespace, name):
            raise errors.already_exists(resource.group, resource.plural, name)
        admission.before_create(self.store, self.registry, resource, obj, self._service_network)
        options.warnings += resource.strategy.warnings(obj)
        _check_size(obj)
        if options.dry_run:
            return obj
        stored = self.store.put(resource.storage, namespace, name, obj).obj
        self._run_hooks(resource, stored, None)
        return stored

    def _generate(self, resource: Resource, namespace: str, base: str) -> str:
        base = base[: 63 - _SUFFIX_LENGTH]
        for _ in range(8):
            name = base + "".join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX_LENGTH))
            if not self.store.get(resource.storage, namespace, name):
                return name
        raise errors.already_exists(resource.group, resource.plural, base)

    def _validate(self, resource: Resource, new: Obj, old: Obj | None, subresource: str = "") -> None:
        strategy = resource.strategy
        causes = names.metadata(new["metadata"], resource.namespaced, strategy.name_rule, not resource.group)
        if old is None:
            causes += strategy.validate(new)
        else:
            causes += names.metadata_update(new["metadata"], old["metadata"])
            if subresource == "status":
                causes += strategy.validate_status_update(new, old)
            elif subresource == "":
                causes += strategy.validate_update(new, old)
        if causes:
            raise errors.invalid(resource.group, resource.kind, new["metadata"].get("name", ""), causes)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        body: Any,
        options: WriteOptions,
        subresource: str = "",
        preconditions: DeleteOptions | None = None,
    ) -> tuple[Obj, bool]:
        """Replace an object (PUT); returns it and whether it was created."""
        obj = self.decode(resource, body, options)
        meta = obj["metadata"]
        if not meta.get("name"):
            raise errors.bad_request("the name of the object (metadata.name) must be set to match the name on the URL")
        if meta["name"] != name:
            text = f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
            raise errors.bad_request(text)
        _match_namespace(resource, namespace, meta)
        if self.store.get(resource.storage, namespace, name) is None:
            if subresource or not resource.strategy.create_on_update or meta.get("uid"):
                raise errors.not_found(resource.group, resource.plural, name)
            meta.pop("resourceVersion", None)
            return self.create_decoded(resource, namespace, obj, options), True
        if not meta.get("resourceVersion") and not resource.strategy.unconditional_update:
            text = "must be specified for an update"
            cause = errors.invalid_value("metadata.resourceVersion", 0, text)
            cause = errors.Cause(cause.reason, cause.field, f"Invalid value: 0x0: {text}")
            raise errors.invalid(resource.group, resource.kind, name, [cause])
        return self.replace(resource, namespace, name, obj, options, subresource), False

    def replace(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        new: Obj,
        options: WriteOptions,
        subresource: str = "",
        applied: bool = False,
    ) -> Obj:
        """Write a changed object (already in stored form) over the current one."""
        old = self.current(resource, namespace, name)
        meta, old_meta = new["metadata"], old["metadata"]
        if meta.get("uid") and meta["uid"] != old_meta["uid"]:
            why = f"Precondition failed: UID in precondition: {meta['uid']}, UID in object meta: {old_meta['uid']}"
            raise errors.conflict(resource.group, resource.plural, name, why)
        if meta.get("resourceVersion") not in (None, "", "0", old_meta["resourceVersion"]):
            raise errors.modified(resource.group, resource.plural, name)
        _keep_system_metadata(resource, meta, old_meta, namespace)
        if not applied:
            managed.track(resource, new, old, options.manager, subresource)
        if subresource == "status":
            resource.strategy.prepare_status_update(new, old)
        elif subresource == "":
            resource.strategy.prepare_update(new, old)
            admission.mutate_update(self.store, resource, new, old, self._service_network)
        self._validate(resource, new, old, subresource)
        for guard in self.guards:
            guard(options.user, resource, new, old, subresource)
        if resource.strategy.has_generation and resource.strategy.generation_changed(new, old):
            new["metadata"]["generation"] = old_meta.get("generation", 0) + 1
        if managed.same(new, old):
            return old
        _check_size(new)
        if options.dry_run:
            return new
        if _fully_deleted(new, old):
            return self._remove(resource, namespace, name, last=new)
        stored = self.store.put(resource.storage, namespace, name, new).obj
        self._run_hooks(resource, stored, old)
        return stored

    def delete(self, resource: Resource, namespace: str, name: str, options: DeleteOptions) -> tuple[Obj, bool]:
        """Delete an object, at once or gracefully; returns its state and whether it is gone."""
        old = self.current(resource, namespace, name)
        meta = old["metadata"]
        if options.uid and options.uid != meta["uid"]:
            why = f"Precondition failed: UID in precondition: {options.uid}, UID in object meta: {meta['uid']}"
            raise errors.conflict(resource.group, resource.plural, name, why)
        if options.version and options.version != meta["resourceVersion"]:
            why = (
                f"Precondition failed: ResourceVersion in precondition: {options.version}, "
                f"ResourceVersion in object meta: {meta['resourceVersion']}"
            )
            raise errors.conflict(resource.group, resource.plural, name, why)
        admission.before_delete(resource, old)
        finalizers = _finalizers_after(meta.get("finalizers") or [], options.propagation)
        grace = resource.strategy.grace_seconds(old, options.grace_seconds) or 0
        if resource.storage == "/namespaces":
            return self._delete_namespace(resource, old, finalizers, options)
        if not finalizers and grace == 0:
            return (old if options.dry_run else self._remove(resource, namespace, name)), True
        new = copy.deepcopy(old)
        _mark_deleted(new["metadata"], finalizers, grace, resource.strategy.has_generation)
        if managed.same(new, old):
            return old, False
        if options.dry_run:
            return new, False
        stored = self.store.put(resource.storage, namespace, name, new).obj
        self._run_hooks(resource, stored, old)
        entry = self.store.get(resource.storage, namespace, name)
        return (entry.obj if entry else stored), entry is None

    def _delete_namespace(
        self, resource: Resource, old: Obj, finalizers: list[str], options: DeleteOptions
    ) -> tuple[Obj, bool]:
        name = old["metadata"]["name"]
        new = copy.deepcopy(old)
        _mark_deleted(new["metadata"], finalizers, 0, False)
        new["metadata"].pop("deletionGracePeriodSeconds", None)
        new["status"]["phase"] = "Terminating"
        gone = not new["spec"].get("finalizers") and not finalizers
        if options.dry_run or managed.same(new, old):
            return new, gone
        if gone:
            return self._remove(resource, "", name), True
        return self.store.put(resource.storage, "", name, new).obj, False

    def finalize_namespace(self, resource: Resource, name: str, body: Any, options: WriteOptions) -> Obj:
        """PUT namespaces/NAME/finalize: set spec.finalizers; the last one removed removes the namespace."""
        wanted = self.decode(resource, body, options)
        old = self.current(resource, "", name)
        if wanted["metadata"].get("resourceVersion") not in (None, "", old["metadata"]["resourceVersion"]):
            raise errors.modified(resource.group, resource.plural, name)
        new = copy.deepcopy(old)
        new["spec"] = {"finalizers": finalizers} if (finalizers := wanted.get("spec", {}).get("finalizers")) else {}
        if options.dry_run:
            return new
        if old["metadata"].get("deletionTimestamp") and not finalizers and not new["metadata"].get("finalizers"):
            return self._remove(resource, "", name, last=new)
        return self.store.put(resource.storage, "", name, new).obj

    def _remove(self, resource: Resource, namespace: str, name: str, last: Obj | None = None) -> Obj:
        removed = self.store.delete(resource.storage, namespace, name).obj
        if last is not None:
            removed = {
                **last,
                "metadata": {**last["metadata"], "resourceVersion": removed["metadata"]["resourceVersion"]},
            }
        self._run_hooks(resource, None, removed)
        return removed

    def _run_hooks(self, resource: Resource, new: Obj | None, old: Obj | None) -> None:
        for hook in self.hooks:
            hook(resource, new, old)


def _check_size(obj: Obj) -> None:
    """Refuse what etcd would not take."""
    if len(encode(obj)) > _MAX_OBJECT_BYTES:
        raise errors.ApiError(500, "", "etcdserver: request is too large")


def _match_namespace(resource: Resource, namespace: str, meta: Obj) -> None:
    if not resource.namespaced:
        meta.pop("namespace", None)
        return
    if meta.setdefault("namespace", namespace) != namespace:
        text = "the namespace of the provided object does not match the namespace sent on the request"
        raise errors.bad_request(text)


def _keep_system_metadata(resource: Resource, meta: Obj, old: Obj, namespace: str) -> None:
    """What an update can never change is taken from the stored object."""
    if resource.namespaced:
        meta.setdefault("namespace", namespace)
    for key in (
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ):
        if key in old:
            meta[key] = old[key]
        else:
            meta.pop(key, None)


def _fully_deleted(new: Obj, old: Obj) -> bool:
    """Whether this update took the last finalizer from an object whose grace period is over."""
    if new["metadata"].get("finalizers") or not old["metadata"].get("deletionTimestamp"):
        return False
    if new.get("kind") == "Namespace" and new.get("spec", {}).get("finalizers"):
        return False
    return not old["metadata"].get("deletionGracePeriodSeconds")


def _finalizers_after(finalizers: list[str], propagation: str | None) -> list[str]:
    """Finalizers once a deletion with this propagation policy has begun."""
    kept = list(finalizers)
    if propagation is not None:
        kept = [item for item in kept if item not in ("foregroundDeletion", "orphan")]
        if propagation == "Foreground":
            kept.append("foregroundDeletion")
        elif propagation == "Orphan":
            kept.append("orphan")
    return kept


def _mark_deleted(meta: Obj, finalizers: list[str], grace: int, has_generation: bool) -> None:
    if finalizers:
        meta["finalizers"] = finalizers
    else:
        meta.pop("finalizers", None)
    known = meta.get("deletionGracePeriodSeconds")
    if meta.get("deletionTimestamp") and (known is None or grace >= known):
        return  # already being deleted, and not to be removed any sooner
    first = not meta.get("deletionTimestamp")
    begun = datetime.now(UTC)
    if not first and known is not None:
        began = datetime.fromisoformat(meta["deletionTimestamp"].replace("Z", "+00:00")) - timedelta(seconds=known)
        begun = min(begun, began) if grace else begun
    meta["deletionTimestamp"] = (begun + timedelta(seconds=grace)).strftime("%Y-%m-%dT%H:%M:%SZ")
    meta["deletionGracePeriodSeconds"] = grace
    if first and has_generation:
        meta["generation"] = meta.get("generation", 0) + 1
