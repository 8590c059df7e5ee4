"""What a URL of the API means, and what representation its caller accepts."""

from __future__ import annotations

from dataclasses import dataclass

from . import errors

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}
JSON = "application/json"


@dataclass(frozen=True)
class RequestInfo:
    """A request to a resource, as authorization and the handlers see it."""

    verb: str
    group: str
    version: str
    plural: str
    namespace: str
    name: str
    subresource: str
    rest: str = ""  # what follows the subresource, of proxies


def parse_path(method: str, path: str, query: dict[str, str]) -> RequestInfo | None:
    """The resource request behind a path; None for everything else (discovery, health, unknown)."""
    parts = path.strip("/").split("/")
    if len(parts) >= 3 and parts[0] == "api":
        group, version, rest = "", parts[1], parts[2:]
    elif len(parts) >= 4 and parts[0] == "apis":
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    watch_prefix = rest[0] == "watch"  # the deprecated /watch/ paths
    if watch_prefix:
        rest = rest[1:]
        if not rest:
            return None
    if rest[0] == "namespaces" and len(rest) >= 2:
        namespace = rest[1]
        # A namespace is itself a resource; its own name is also the namespace of the request.
        inside = len(rest) >= 3 and rest[2] not in ("status", "finalize")
        rest = rest[2:] if inside else ["namespaces", *rest[1:]]
    plural, name = rest[0], rest[1] if len(rest) > 1 else ""
    subresource = rest[2] if len(rest) > 2 else ""
    watching = watch_prefix or query.get("watch", "") in ("true", "1")
    verb = _VERBS.get(method, "")
    if method in ("GET", "HEAD"):
        verb = "get" if name else "watch" if watching else "list"
        if watch_prefix and name:
            verb = "watch"
    elif method == "DELETE":
        verb = "delete" if name else "deletecollection"
    return RequestInfo(verb, group, version, plural, namespace, name, subresource, "/".join(rest[3:]))


def selected_name(field_selector: str) -> str:
    """The name that a field selector asks for exactly, "" when it asks for none."""
    for part in field_selector.split(","):
        path, equals, value = part.replace("==", "=").partition("=")
        if path == "metadata.name" and equals:
            return value
    return ""


@dataclass(frozen=True)
class Accepted:
    """One media range of an Accept header that this server can answer."""

    media_type: str = JSON  # application/json or application/yaml
    kind: str = ""  # Table, PartialObjectMetadata, PartialObjectMetadataList, APIGroupDiscoveryList
    version: str = ""
    group: str = ""

    @property
    def content_type(self) -> str:
        """The Content-Type of an answer in this form."""
        if self.kind == "APIGroupDiscoveryList":
            return f"{self.media_type};g={self.group};v={self.version};as={self.kind}"
        return self.media_type


_KINDS = {
    "Table": ("meta.k8s.io", ("v1", "v1beta1")),
    "PartialObjectMetadata": ("meta.k8s.io", ("v1", "v1beta1")),
    "PartialObjectMetadataList": ("meta.k8s.io", ("v1", "v1beta1")),
    "APIGroupDiscoveryList": ("apidiscovery.k8s.io", ("v2", "v2beta1")),
}


def negotiate(header: str, kinds: tuple[str, ...]) -> Accepted:
    """The first range of an Accept header that this server can serve. Raises ApiError 406 when there is none."""
    if not header.strip():
        return Accepted()
    for part in header.split(","):
        media, *pairs = (piece.strip() for piece in part.split(";"))
        parameters = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        if media in ("*/*", "application/*"):
            media = JSON
        if media not in (JSON, "application/yaml"):
            continue
        kind = parameters.get("as", "")
        if not kind:
            return Accepted(media)
        group, versions = _KINDS.get(kind, ("", ()))
        if kind in kinds and parameters.get("g") == group and parameters.get("v") in versions:
            return Accepted(media, kind, parameters["v"], group)
    raise errors.not_acceptable((JSON, "application/yaml"))
