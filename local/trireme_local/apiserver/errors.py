"""Errors of the API as metav1.Status objects, with the reasons and messages of a real API server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


def quote(value: Any) -> str:
    """Render a value the way field errors of the API do: strings and structures in JSON quotes."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True)
class Cause:
    """One field error of an Invalid (422) answer."""

    reason: str
    field: str
    text: str

    def as_status(self) -> dict[str, Any]:
        """The metav1.StatusCause of this error."""
        return {"reason": self.reason, "message": self.text, "field": self.field}

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


def required(field: str, detail: str = "") -> Cause:
    """A required field is missing."""
    return Cause("FieldValueRequired", field, "Required value" + (f": {detail}" if detail else ""))


def invalid_value(field: str, value: Any, detail: str) -> Cause:
    """A field's value breaks a rule."""
    return Cause("FieldValueInvalid", field, f"Invalid value: {quote(value)}: {detail}")


def forbidden_value(field: str, detail: str) -> Cause:
    """A field must not be set or changed."""
    return Cause("FieldValueForbidden", field, f"Forbidden: {detail}")


def unsupported_value(field: str, value: Any, supported: Sequence[Any]) -> Cause:
    """A value is outside an enumeration."""
    names = ", ".join(quote(item) for item in supported)
    return Cause("FieldValueNotSupported", field, f"Unsupported value: {quote(value)}: supported values: {names}")


def duplicate_value(field: str, value: Any) -> Cause:
    """A list that is a set or a map holds an item twice."""
    return Cause("FieldValueDuplicate", field, f"Duplicate value: {quote(value)}")


def too_long(field: str, limit: int) -> Cause:
    """A string is longer than `limit` bytes."""
    return Cause("FieldValueTooLong", field, f"Too long: may not be more than {limit} bytes")


def too_many(field: str, actual: int, limit: int) -> Cause:
    """A list holds more than `limit` items."""
    return Cause("FieldValueTooMany", field, f"Too many: {actual}: must have at most {limit} items")


class ApiError(Exception):
    """An answer other than success; carries the metav1.Status that the client receives."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details = details
        self.headers = headers or {}

    def status(self) -> dict[str, Any]:
        """The metav1.Status object of this error."""
        body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            body["reason"] = self.reason
        if self.details:
            body["details"] = self.details
        body["code"] = self.code
        return body


def _qualified(group: str, plural: str) -> str:
    return f"{plural}.{group}" if group else plural


def _details(group: str, plural: str, name: str = "", **extra: Any) -> dict[str, Any]:
    details: dict[str, Any] = {"name": name} if name else {}
    if group:
        details["group"] = group
    details["kind"] = plural
    details.update(extra)
    return details


def not_found(group: str, plural: str, name: str) -> ApiError:
    """404 for a named object."""
    message = f'{_qualified(group, plural)} "{name}" not found'
    return ApiError(404, "NotFound", message, _details(group, plural, name))


def path_not_found() -> ApiError:
    """404 for a path or a group/resource that this server does not serve."""
    return ApiError(404, "NotFound", "the server could not find the requested resource", {})


def already_exists(group: str, plural: str, name: str) -> ApiError:
    """409 for a create of a name in use."""
    message = f'{_qualified(group, plural)} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, _details(group, plural, name))


def conflict(group: str, plural: str, name: str, why: str) -> ApiError:
    """409 for a failed precondition."""
    message = f'Operation cannot be fulfilled on {_qualified(group, plural)} "{name}": {why}'
    return ApiError(409, "Conflict", message, _details(group, plural, name))


MODIFIED = "the object has been modified; please apply your changes to the latest version and try again"


def modified(group: str, plural: str, name: str) -> ApiError:
    """409 for a stale resourceVersion."""
    return conflict(group, plural, name, MODIFIED)


def invalid(group: str, kind: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with one cause per broken field."""
    what = f"{kind}.{group}" if group else kind
    texts = [str(cause) for cause in causes]
    listed = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    details: dict[str, Any] = {"name": name} if name else {}
    if group:
        details["group"] = group
    details["kind"] = kind
    details["causes"] = [cause.as_status() for cause in causes]
    return ApiError(422, "Invalid", f'{what} "{name}" is invalid: {listed}', details)


def bad_request(message: str) -> ApiError:
    """400 for a request that cannot be understood."""
    return ApiError(400, "BadRequest", message)


def unauthorized() -> ApiError:
    """401 for a missing or unknown identity."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def forbidden(group: str, plural: str, name: str, why: str) -> ApiError:
    """403 from authorization or admission."""
    shown = f' "{name}"' if name else ""
    message = f"{_qualified(group, plural)}{shown} is forbidden: {why}" if plural else f"forbidden: {why}"
    return ApiError(403, "Forbidden", message, _details(group, plural, name) if plural else {})


def method_not_supported(group: str, plural: str, action: str) -> ApiError:
    """405 for a verb that the resource lacks."""
    message = f"{action} is not supported on resources of kind {quote(_qualified(group, plural))}"
    return ApiError(405, "MethodNotAllowed", message, _details(group, plural))


def unsupported_media_type(got: str, accepted: Sequence[str]) -> ApiError:
    """415 for a request body in another encoding."""
    message = (
        "the body of the request was in an unknown format - accepted media types include: "
        + ", ".join(accepted)
        + f" (got {got!r})"
    )
    return ApiError(415, "UnsupportedMediaType", message)


def not_acceptable(accepted: Sequence[str]) -> ApiError:
    """406 for an Accept header that nothing here satisfies."""
    return ApiError(406, "NotAcceptable", "only the following media types are accepted: " + ", ".join(accepted))


def expired(message: str) -> ApiError:
    """410 for a resourceVersion or continue token that is too old."""
    return ApiError(410, "Expired", message)


def too_large_version(requested: int, current: int) -> ApiError:
    """504 for a resourceVersion from the future."""
    return ApiError(
        504,
        "Timeout",
        f"Too large resource version: {requested}, current: {current}",
        {
            "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
            "retryAfterSeconds": 1,
        },
    )


def not_implemented(what: str) -> ApiError:
    """501 for a feature of Kubernetes that this server does not have."""
    return ApiError(501, "NotImplemented", f"this API server does not support {what}")
