"""Reviews of identity and access: created, answered, never stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors
from .auth import ANONYMOUS, AUDIENCE, User
from .rbac import Attributes
from .registry import REVIEWS
from .request import RequestInfo
from .resource import now
from .store import Obj

if TYPE_CHECKING:
    from .server import ApiServer


def find(info: RequestInfo) -> str | None:
    """The kind of review that a request creates, None for other requests."""
    if info.version != "v1" or info.subresource:
        return None
    return next((kind for plural, kind, _ in REVIEWS.get(info.group, ()) if plural == info.plural), None)


def answer(server: ApiServer, kind: str, info: RequestInfo, body: Any, user: User) -> Obj:
    """The review with its status filled in. Raises ApiError 400."""
    if not isinstance(body, dict) or body.get("kind", kind) != kind:
        raise errors.bad_request(f"the request body is not a {kind}")
    review: Obj = {
        "kind": kind,
        "apiVersion": f"{info.group}/{info.version}",
        "metadata": {"creationTimestamp": None},
        "spec": body.get("spec") or {},
    }
    if kind == "SelfSubjectReview":
        review.pop("spec")
        review["metadata"] = {"creationTimestamp": now()}
        review["status"] = {"userInfo": user.as_info()}
    elif kind == "TokenReview":
        review["status"] = _token(server, review["spec"])
    elif kind == "SelfSubjectRulesReview":
        review["status"] = server.authorizer.rules_status(user, review["spec"].get("namespace", ""))
    else:
        review["status"] = _access(server, kind, info, review["spec"], user)
    return review


def _token(server: ApiServer, spec: Obj) -> Obj:
    found = server.authenticator.user(spec.get("token", ""))
    if found is None:
        return {"user": {}, "error": "invalid bearer token"}
    audiences = [item for item in spec.get("audiences") or [AUDIENCE] if item == AUDIENCE]
    if not audiences:
        return {"user": {}, "error": "token audiences do not match"}
    return {"authenticated": True, "user": found.as_info(), "audiences": audiences}


def _access(server: ApiServer, kind: str, info: RequestInfo, spec: Obj, user: User) -> Obj:
    if kind == "SelfSubjectAccessReview":
        subject = user
    else:
        if not spec.get("user") and not spec.get("groups"):
            cause = errors.invalid_value("spec.user", "", "at least one of user or group must be specified")
            raise errors.invalid(info.group, kind, "", [cause])
        subject = User(spec.get("user", ANONYMOUS.name), spec.get("uid", ""), tuple(spec.get("groups") or ()))
    wanted: Any = spec.get("resourceAttributes")
    path: Any = spec.get("nonResourceAttributes")
    if (wanted is None) == (path is None):
        text = "exactly one of nonResourceAttributes or resourceAttributes must be specified"
        raise errors.invalid(info.group, kind, "", [errors.invalid_value("spec.resourceAttributes", wanted, text)])
    if path is not None:
        attributes = Attributes(subject, path.get("verb", ""), path=path.get("path", ""))
    else:
        namespace = wanted.get("namespace", "")
        if kind == "LocalSubjectAccessReview" and namespace != info.namespace:
            raise errors.bad_request("spec.resourceAttributes.namespace must match metadata.namespace")
        attributes = Attributes(
            subject,
            wanted.get("verb", ""),
            wanted.get("group", ""),
            wanted.get("version", ""),
            wanted.get("resource", ""),
            wanted.get("subresource", ""),
            namespace,
            wanted.get("name", ""),
        )
    reason = server.authorizer.reason(attributes)
    return {"allowed": reason is not None} | ({"reason": reason} if reason else {})
