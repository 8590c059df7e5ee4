"""Rules of security contexts.

Source: ValidatePodSecurityContext and ValidateSecurityContext of Kubernetes' pkg/apis/core/validation.
"""

from __future__ import annotations

from .. import errors
from ..errors import Cause
from ..store import Obj

_MAX_ID = 2**31 - 1
_CHOICES = {
    "fsGroupChangePolicy": ("Always", "OnRootMismatch"),
    "supplementalGroupsPolicy": ("Merge", "Strict"),
    "procMount": ("Default", "Unmasked"),
}
_SECCOMP = ("Localhost", "RuntimeDefault", "Unconfined")


def _ids(context: Obj, field: str) -> list[Cause]:
    given = {f"{field}.{key}": context[key] for key in ("runAsUser", "runAsGroup", "fsGroup") if key in context}
    given |= {f"{field}.supplementalGroups[{i}]": n for i, n in enumerate(context.get("supplementalGroups", ()))}
    text = f"must be between 0 and {_MAX_ID}, inclusive"
    return [errors.invalid_value(at, value, text) for at, value in given.items() if not 0 <= value <= _MAX_ID]


def _seccomp(profile: Obj, field: str) -> list[Cause]:
    kind = profile.get("type", "")
    if kind not in _SECCOMP:
        return [errors.unsupported_value(f"{field}.type", kind, _SECCOMP)]
    if kind == "Localhost" and not profile.get("localhostProfile"):
        return [errors.required(f"{field}.localhostProfile", "must be set when seccomp type is Localhost")]
    if kind != "Localhost" and "localhostProfile" in profile:
        text = "can only be set when seccomp type is Localhost"
        return [errors.invalid_value(f"{field}.localhostProfile", profile["localhostProfile"], text)]
    return []


def _common(context: Obj, field: str) -> list[Cause]:
    found = _ids(context, field)
    for key, supported in _CHOICES.items():
        if key in context and context[key] not in supported:
            found.append(errors.unsupported_value(f"{field}.{key}", context[key], supported))
    if "seccompProfile" in context:
        found += _seccomp(context["seccompProfile"], f"{field}.seccompProfile")
    return found


def pod_context(context: Obj, field: str) -> list[Cause]:
    """Field errors of a pod's security context."""
    found = _common(context, field)
    for index, item in enumerate(context.get("sysctls", ())):
        if not item.get("name"):
            found.append(errors.required(f"{field}.sysctls[{index}].name"))
    return found


def container_context(context: Obj, field: str) -> list[Cause]:
    """Field errors of a container's security context."""
    found = _common(context, field)
    if context.get("allowPrivilegeEscalation") is False:
        text = "cannot set `allowPrivilegeEscalation` to false and "
        if context.get("privileged"):
            found.append(errors.invalid_value(field, context, text + "`privileged` to true"))
        if "CAP_SYS_ADMIN" in context.get("capabilities", {}).get("add", ()):
            found.append(errors.invalid_value(field, context, text + "`capabilities.Add` CAP_SYS_ADMIN"))
    return found
