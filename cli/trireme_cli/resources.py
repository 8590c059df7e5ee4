"""`trireme apply|get|describe|delete`: what kubectl does, for machines without kubectl."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

from trireme_cli.cluster import TABLE, Cluster, ClusterError, ResourceType

Kubeconfig = Annotated[
    Path | None, typer.Option("--kubeconfig", help="Defaults to KUBECONFIG, then the local cluster.")
]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Namespace.")]


class ManifestError(Exception):
    """A manifest that names no resource; the message says which file and document, and what is wrong with it."""


def read_manifests(source: str) -> list[dict[str, Any]]:
    """All YAML documents of a file, of a folder's *.yaml files in name order, or of standard input ('-').

    Every one of them has apiVersion, kind and metadata.name. Raises ManifestError.
    """
    if source == "-":
        return list(_documents("standard input", sys.stdin.read()))
    path = Path(source)
    if not path.exists():
        raise typer.BadParameter(f"{source} does not exist")
    files = sorted([*path.glob("*.yaml"), *path.glob("*.yml")]) if path.is_dir() else [path]
    manifests: list[dict[str, Any]] = []
    for file in files:
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ManifestError(f"{file} cannot be read: {error}") from error
        manifests += _documents(str(file), text)
    return manifests


def _documents(origin: str, text: str) -> Iterator[dict[str, Any]]:
    """The manifests of one file, empty documents left out."""
    number = 0
    try:
        for number, document in enumerate(yaml.safe_load_all(text), start=1):
            if document is None:
                continue
            if problem := _problem(document):
                raise ManifestError(f"{origin}, document {number}: {problem}")
            yield document
    except yaml.YAMLError as error:
        detail = " ".join(str(error).split())
        raise ManifestError(f"{origin}, document {number + 1}: invalid YAML: {detail}") from error


def _problem(document: Any) -> str | None:
    """Why a document is no manifest."""
    if not isinstance(document, dict):
        return f"a manifest is a mapping, this is of type {type(document).__name__}"
    metadata = document.get("metadata")
    named = metadata.get("name") if isinstance(metadata, dict) else None
    for field, value in (
        ("apiVersion", document.get("apiVersion")),
        ("kind", document.get("kind")),
        ("metadata.name", named),
    ):
        if not isinstance(value, str) or not value:
            return f"{field} is missing" if value in (None, "") else f"{field} is not a string: {value!r}"
    return None


def apply(
    filename: Annotated[str, typer.Option("--filename", "-f", help="File, folder or - for standard input.")],
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Create or change the resources of a manifest (server-side apply)."""
    cluster = Cluster(kubeconfig)
    failed = False
    for manifest in read_manifests(filename):
        label = f"{manifest['kind'].lower()}/{manifest['metadata']['name']}"
        try:
            cluster.apply(manifest, namespace)
            print(f"{label} serverside-applied")
        except ClusterError as error:
            failed = True
            print(f"error: {label}: {error}", file=sys.stderr)
    if failed:
        raise typer.Exit(1)


def get(
    kind: Annotated[str, typer.Argument(help="Plural, singular, short or group-qualified name.")],
    name: Annotated[str | None, typer.Argument()] = None,
    namespace: Namespace = "default",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A")] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="wide, yaml or name.")] = "",
    kubeconfig: Kubeconfig = None,
) -> None:
    """List resources, with the columns that the server prints."""
    cluster = Cluster(kubeconfig)
    resource = cluster.find_type(kind)
    path = resource.path(None if all_namespaces else namespace, name)
    if output == "yaml":
        print(yaml.safe_dump(cluster.request("GET", path), sort_keys=False), end="")
        return
    answer = cluster.request("GET", path, accept=TABLE)
    if output == "name":
        for row in answer["rows"]:
            print(f"{resource.plural}/{row['object']['metadata']['name']}")
        return
    if not answer["rows"]:
        print(f"No resources found in {namespace} namespace.", file=sys.stderr)
        return
    columns = [(i, c) for i, c in enumerate(answer["columnDefinitions"]) if output == "wide" or not c.get("priority")]
    table = Table(box=None, pad_edge=False, header_style="")
    if all_namespaces and resource.namespaced:
        table.add_column("NAMESPACE", no_wrap=True)
    for _, column in columns:
        table.add_column(column["name"].upper(), no_wrap=True)
    for row in answer["rows"]:
        cells = [_cell(row["cells"][i]) for i, _ in columns]
        prefix = [row["object"]["metadata"]["namespace"]] if all_namespaces and resource.namespaced else []
        table.add_row(*prefix, *cells)
    Console(width=None if sys.stdout.isatty() else 240).print(table)


def describe(
    kind: str,
    name: str,
    namespace: Namespace = "default",
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show one resource whole, and its events."""
    cluster = Cluster(kubeconfig)
    resource = cluster.find_type(kind)
    found = cluster.request("GET", resource.path(namespace, name))
    found["metadata"].pop("managedFields", None)
    print(yaml.safe_dump(found, sort_keys=False), end="")
    selector = f"involvedObject.kind={resource.kind},involvedObject.name={name}"
    events = cluster.request("GET", f"/api/v1/namespaces/{namespace}/events", query={"fieldSelector": selector})
    print("Events:")
    for event in sorted(events["items"], key=lambda e: e.get("lastTimestamp") or e.get("eventTime") or ""):
        when = event.get("lastTimestamp") or event.get("eventTime") or ""
        print(f"  {when}  {event.get('type', ''):8} {event.get('reason', ''):24} {event.get('message', '')}")


def delete(
    kind: Annotated[str | None, typer.Argument()] = None,
    name: Annotated[str | None, typer.Argument()] = None,
    filename: Annotated[str | None, typer.Option("--filename", "-f")] = None,
    namespace: Namespace = "default",
    wait: Annotated[bool, typer.Option(help="Wait until the resource is gone.")] = True,
    timeout_seconds: Annotated[float, typer.Option("--timeout")] = 120,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a resource by kind and name, or all resources of a manifest."""
    cluster = Cluster(kubeconfig)
    victims: list[tuple[ResourceType, str, str]] = []
    if filename is not None:
        for manifest in reversed(read_manifests(filename)):
            metadata = manifest["metadata"]
            victims.append((cluster.type_of(manifest), metadata.get("namespace", namespace), metadata["name"]))
    elif kind and name:
        victims.append((cluster.find_type(kind), namespace, name))
    else:
        raise typer.BadParameter("give KIND NAME or --filename")
    for resource, where, which in victims:
        path = resource.path(where if resource.namespaced else None, which)
        try:
            cluster.request("DELETE", path, {"propagationPolicy": "Background"})
        except ClusterError as error:
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from error
        print(f'{resource.singular} "{which}" deleted')
        if wait:
            _wait_until_gone(cluster, path, timeout_seconds)


def _wait_until_gone(cluster: Cluster, path: str, timeout_seconds: float) -> None:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        try:
            cluster.request("GET", path)
        except ClusterError as error:
            if error.status == 404:
                return
            raise
        time.sleep(0.2)  # polling a deletion; the server offers no blocking delete
    print(f"error: {path} still exists after {timeout_seconds:.0f} s", file=sys.stderr)
    raise typer.Exit(1)


def _cell(value: Any) -> str:
    return "<none>" if value is None or value == "" else str(value)
