"""Rules for names, labels and object metadata that every resource shares."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from . import errors
from .errors import Cause
from .store import Obj

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_DNS_LABEL = re.compile(rf"^{_LABEL}$")
_DNS_1035 = re.compile(r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
_SUBDOMAIN = re.compile(rf"^{_LABEL}(\.{_LABEL})*$")
_QUALIFIED = re.compile(r"^([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]$")
_LABEL_VALUE = re.compile(r"^(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?$")
_ENV_NAME = re.compile(r"^[ -<>-~]+$")
_PORT_NAME = re.compile(r"^(?=.{1,15}$)(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
_CONFIG_KEY = re.compile(r"^[-._a-zA-Z0-9]+$")

SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
    r"'[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)
LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    "with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is "
    "'[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
)
DNS_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, "
    "and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    "'[a-z]([-a-z0-9]*[a-z0-9])?')"
)
LABEL_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start "
    "and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation "
    "is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
QUALIFIED_TEXT = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is "
    "'([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
)
NameRule = Callable[[str], list[str]]


def subdomain(name: str) -> list[str]:
    """Problems of a DNS-1123 subdomain."""
    found = [] if len(name) <= 253 else ["must be no more than 253 characters"]
    return found if _SUBDOMAIN.match(name) else [*found, SUBDOMAIN_TEXT]


def dns_label(name: str) -> list[str]:
    """Problems of a DNS-1123 label."""
    found = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    return found if _DNS_LABEL.match(name) else [*found, LABEL_TEXT]


def dns_1035(name: str) -> list[str]:
    """Problems of a DNS-1035 label, the rule of Service names."""
    found = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    return found if _DNS_1035.match(name) else [*found, DNS_1035_TEXT]


def path_segment(name: str) -> list[str]:
    """Problems of a name that only has to be a path segment, the rule of RBAC names."""
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{char}'" for char in "/%" if char in name]


def qualified(name: str) -> list[str]:
    """Problems of a label or annotation key."""
    prefix, slash, last = name.rpartition("/")
    found = []
    if slash:
        if not prefix:
            found.append("prefix part must be non-empty")
        elif problems := subdomain(prefix):
            found += [f"prefix part {problem}" for problem in problems]
    if not last:
        found.append("name part must be non-empty")
    elif len(last) > 63:
        found.append("name part must be no more than 63 characters")
    if not _QUALIFIED.match(last):
        found.append(QUALIFIED_TEXT)
    return found


def label_value(value: str) -> list[str]:
    """Problems of a label value."""
    found = [] if len(value) <= 63 else ["must be no more than 63 characters"]
    return found if _LABEL_VALUE.match(value) else [*found, LABEL_VALUE_TEXT]


def env_name(name: str) -> list[str]:
    """Problems of an environment variable's name (relaxed rule: printable ASCII without '=')."""
    if _ENV_NAME.match(name):
        return []
    return ["a valid environment variable name must consist only of printable ASCII characters other than '='"]


def port_name(name: str) -> list[str]:
    """Problems of the name by which a port of a container is referred to (an IANA_SVC_NAME)."""
    if _PORT_NAME.match(name):
        return []
    return ["must be no more than 15 characters of lower case letters, digits and '-', with at least one letter"]


def config_key(name: str) -> list[str]:
    """Problems of a key of a ConfigMap or Secret."""
    if len(name) > 253:
        return ["must be no more than 253 characters"]
    if not _CONFIG_KEY.match(name) or name in (".", "..") or name.startswith(".."):
        return [
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or "
            "'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
        ]
    return []


def labels(values: dict[str, str], field: str) -> list[Cause]:
    """Field errors of a label map."""
    found = []
    for key, value in values.items():
        found += [errors.invalid_value(field, key, problem) for problem in qualified(key)]
        found += [errors.invalid_value(field, value, problem) for problem in label_value(value)]
    return found


def _owner_references(references: list[Obj]) -> list[Cause]:
    found, controllers = [], []
    for index, reference in enumerate(references):
        field = f"metadata.ownerReferences[{index}]"
        for key in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(key):
                found.append(errors.invalid_value(f"{field}.{key}", reference.get(key, ""), "must not be empty"))
        if reference.get("controller"):
            controllers.append(reference)
    if len(controllers) > 1:
        found.append(
            errors.invalid_value(
                "metadata.ownerReferences", references, "Only one reference can have Controller set to true."
            )
        )
    return found


def metadata(meta: Obj, namespaced: bool, rule: NameRule, core: bool) -> list[Cause]:
    """Field errors of an object's metadata; the name by the rule of its kind, finalizers stricter for `core` kinds."""
    found: list[Cause] = []
    name = meta.get("name", "")
    if not name:
        if not meta.get("generateName"):
            found.append(errors.required("metadata.name", "name or generateName is required"))
    else:
        found += [errors.invalid_value("metadata.name", name, problem) for problem in rule(name)]
    if namespaced and not meta.get("namespace"):
        found.append(errors.required("metadata.namespace"))
    found += labels(meta.get("labels") or {}, "metadata.labels")
    annotations = meta.get("annotations") or {}
    for key in annotations:
        found += [errors.invalid_value("metadata.annotations", key, text) for text in qualified(key.lower())]
    if sum(len(key.encode()) + len(value.encode()) for key, value in annotations.items()) > 256 * 1024:
        found.append(errors.too_long("metadata.annotations", 256 * 1024))
    found += _owner_references(meta.get("ownerReferences") or [])
    for index, finalizer in enumerate(meta.get("finalizers") or []):
        problems = qualified(finalizer)
        found += [errors.invalid_value(f"metadata.finalizers[{index}]", finalizer, text) for text in problems]
        if (
            core
            and not problems
            and "/" not in finalizer
            and finalizer not in ("foregroundDeletion", "orphan", "kubernetes")
        ):
            text = "name is neither a standard finalizer name nor is it fully qualified"
            found.append(errors.invalid_value(f"metadata.finalizers[{index}]", finalizer, text))
    return found


_IMMUTABLE = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")


def metadata_update(new: Obj, old: Obj) -> list[Cause]:
    """Field errors of a change to an object's metadata."""
    found = []
    for key in _IMMUTABLE:
        if new.get(key) != old.get(key):
            found.append(errors.invalid_value(f"metadata.{key}", new.get(key), "field is immutable"))
    if old.get("deletionTimestamp"):
        added = [item for item in new.get("finalizers") or [] if item not in (old.get("finalizers") or [])]
        if added:
            text = "no new finalizers can be added if the object is being deleted, found new finalizers "
            found.append(errors.forbidden_value("metadata.finalizers", f"{text}[]string{{{_go_list(added)}}}"))
    return found


def _go_list(values: list[Any]) -> str:
    return ", ".join(errors.quote(value) for value in values)
