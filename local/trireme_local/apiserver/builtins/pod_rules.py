"""Semantic rules of a pod spec, with the field errors of a real API server."""

from __future__ import annotations

import re
from typing import Any

from .. import errors, names
from ..errors import Cause
from ..store import Obj
from . import placement_rules, quantities, security_rules

_PORT_NAME = re.compile(r"^(?=.{1,15}$)(?!.*--)[a-z0-9-]*[a-z][a-z0-9-]*$")
_FIELD_REFS = {
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
}
_SUBSCRIPT = re.compile(r"^metadata\.(labels|annotations)\['([^']+)'\]$")
_NATIVE = {"cpu", "memory", "ephemeral-storage"}
_HUGE = "hugepages-"


def _one_of(field: str, value: Any, supported: tuple[str, ...]) -> list[Cause]:
    return [] if value in supported else [errors.unsupported_value(field, value, supported)]


def _check_names(field: str, value: str, rule: names.NameRule) -> list[Cause]:
    return [errors.invalid_value(field, value, text) for text in rule(value)]


def _port(field: str, value: int) -> list[Cause]:
    return [] if 0 < value < 65536 else [errors.invalid_value(field, value, "must be between 1 and 65535, inclusive")]


def _not_negative(spec: Obj, key: str, field: str) -> list[Cause]:
    value = spec.get(key, 0)
    return [] if value >= 0 else [errors.invalid_value(f"{field}.{key}", value, "must be greater than or equal to 0")]


def _env(variables: list[Obj], field: str) -> list[Cause]:
    found: list[Cause] = []
    for index, variable in enumerate(variables):
        at = f"{field}[{index}]"
        name = variable.get("name", "")
        found += [errors.required(f"{at}.name")] if not name else _check_names(f"{at}.name", name, names.env_name)
        source = variable.get("valueFrom")
        if source is None:
            continue
        given = [key for key in ("fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef") if key in source]
        if variable.get("value"):
            text = "may not be specified when `value` is not empty"
            found.append(errors.invalid_value(f"{at}.valueFrom", "", text))
        elif len(given) != 1:
            text = (
                "may not have more than one field specified at a time"
                if given
                else ("must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`")
            )
            found.append(errors.invalid_value(f"{at}.valueFrom", "", text))
        for key in ("configMapKeyRef", "secretKeyRef"):
            if key in source:
                if not source[key].get("name"):
                    found.append(errors.required(f"{at}.valueFrom.{key}.name"))
                if not source[key].get("key"):
                    found.append(errors.required(f"{at}.valueFrom.{key}.key"))
        if "fieldRef" in source:
            path = source["fieldRef"].get("fieldPath", "")
            if not path:
                found.append(errors.required(f"{at}.valueFrom.fieldRef.fieldPath"))
            elif path not in _FIELD_REFS and not _SUBSCRIPT.match(path):
                found.append(errors.unsupported_value(f"{at}.valueFrom.fieldRef.fieldPath", path, sorted(_FIELD_REFS)))
    return found


def _env_from(sources: list[Obj], field: str) -> list[Cause]:
    found: list[Cause] = []
    for index, source in enumerate(sources):
        at = f"{field}[{index}]"
        if prefix := source.get("prefix"):
            found += _check_names(f"{at}.prefix", prefix, names.env_name)
        given = [key for key in ("configMapRef", "secretRef") if key in source]
        if len(given) != 1:
            text = (
                "may not have more than one field specified at a time"
                if given
                else ("must specify one of: `configMapRef` or `secretRef`")
            )
            found.append(errors.invalid_value(at, "", text))
        found += [errors.required(f"{at}.{key}.name") for key in given if not source[key].get("name")]
    return found


def _resources(resources: Obj, field: str) -> list[Cause]:
    found: list[Cause] = []
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for kind, values in (("limits", limits), ("requests", requests)):
        for name, value in values.items():
            at = f"{field}.{kind}[{name}]"
            if "/" not in name and name not in _NATIVE and not name.startswith(_HUGE):
                text = "must be a standard resource type or fully qualified"
                found.append(errors.invalid_value(at, name, text))
            elif "/" in name:
                found += _check_names(at, name, names.qualified)
            if quantities.parse(value) < 0:
                found.append(errors.invalid_value(at, value, "must be greater than or equal to 0"))
            extended = "/" in name and "kubernetes.io/" not in name.split("/")[0] + "/"
            if extended and quantities.parse(value).denominator != 1:
                found.append(errors.invalid_value(at, value, "must be an integer"))
    for name, value in requests.items():
        at = f"{field}.requests"
        if name in limits and quantities.parse(value) > quantities.parse(limits[name]):
            text = f"must be less than or equal to {name} limit of {limits[name]}"
            found.append(errors.invalid_value(at, value, text))
        overcommit = name in _NATIVE
        if not overcommit and name in limits and quantities.parse(value) != quantities.parse(limits[name]):
            text = f"must be equal to {name} limit of {limits[name]}"
            found.append(errors.invalid_value(at, value, text))
        if not overcommit and name not in limits:
            text = "Limit must be set for non overcommitable resources"
            found.append(errors.required(f"{field}.limits", text))
    return found


def _mounts(container: Obj, volumes: set[str], field: str) -> list[Cause]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts", ())):
        at = f"{field}.volumeMounts[{index}]"
        if not mount.get("name"):
            found.append(errors.required(f"{at}.name"))
        elif mount["name"] not in volumes:
            found.append(Cause("FieldValueNotFound", f"{at}.name", f"Not found: {errors.quote(mount['name'])}"))
        path = mount.get("mountPath", "")
        if not path:
            found.append(errors.required(f"{at}.mountPath"))
        elif path in seen:
            found.append(errors.invalid_value(f"{at}.mountPath", path, "must be unique"))
        seen.add(path)
        sub_path = mount.get("subPath", "")
        if sub_path.startswith("/"):
            found.append(errors.invalid_value(f"{at}.subPath", sub_path, "must be a relative path"))
        if ".." in sub_path.split("/"):
            found.append(errors.invalid_value(f"{at}.subPath", sub_path, "must not contain '..'"))
    return found


def _probe(probe: Obj, field: str) -> list[Cause]:
    handlers = [key for key in ("exec", "httpGet", "tcpSocket", "grpc") if key in probe]
    if not handlers:
        return [errors.required(field, "must specify a handler type")]
    if len(handlers) > 1:
        return [
            errors.forbidden_value(f"{field}.{key}", "may not specify more than 1 handler type") for key in handlers[1:]
        ]
    found: list[Cause] = []
    for key in ("initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"):
        found += _not_negative(probe, key, field)
    if probe.get("successThreshold", 1) != 1 and not field.endswith("readinessProbe"):
        found.append(errors.invalid_value(f"{field}.successThreshold", probe["successThreshold"], "must be 1"))
    return found


def _container(container: Obj, volumes: set[str], field: str, init: bool) -> list[Cause]:
    found: list[Cause] = []
    name = container.get("name", "")
    found += [errors.required(f"{field}.name")] if not name else _check_names(f"{field}.name", name, names.dns_label)
    image = container.get("image", "")
    if not image:
        found.append(errors.required(f"{field}.image"))
    elif image != image.strip():
        found.append(errors.invalid_value(f"{field}.image", image, "must not have leading or trailing whitespace"))
    if image:
        policies = ("Always", "IfNotPresent", "Never")
        found += _one_of(f"{field}.imagePullPolicy", container.get("imagePullPolicy"), policies)
    found += _one_of(
        f"{field}.terminationMessagePolicy",
        container.get("terminationMessagePolicy"),
        ("FallbackToLogsOnError", "File"),
    )
    port_names: set[str] = set()
    for index, port in enumerate(container.get("ports", ())):
        at = f"{field}.ports[{index}]"
        if "containerPort" not in port:
            found.append(errors.required(f"{at}.containerPort"))
        else:
            found += _port(f"{at}.containerPort", port["containerPort"])
        if (port_name := port.get("name")) is not None:
            if not _PORT_NAME.match(port_name):
                text = "must be no more than 15 characters, of lower case letters, digits and '-', with a letter"
                found.append(errors.invalid_value(f"{at}.name", port_name, text))
            elif port_name in port_names:
                found.append(errors.duplicate_value(f"{at}.name", port_name))
            port_names.add(port_name)
        found += _one_of(f"{at}.protocol", port.get("protocol"), ("SCTP", "TCP", "UDP"))
    found += _env(container.get("env", []), f"{field}.env")
    found += _env_from(container.get("envFrom", []), f"{field}.envFrom")
    found += _resources(container.get("resources", {}), f"{field}.resources")
    found += _mounts(container, volumes, field)
    found += security_rules.container_context(container.get("securityContext", {}), f"{field}.securityContext")
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if key in container and init and container.get("restartPolicy") != "Always":
            found.append(
                errors.forbidden_value(
                    f"{field}.{key}", "may not be set for init containers without restartPolicy=Always"
                )
            )
        elif key in container:
            found += _probe(container[key], f"{field}.{key}")
    return found


def _volumes(volumes: list[Obj]) -> tuple[set[str], list[Cause]]:
    found: list[Cause] = []
    seen: set[str] = set()
    for index, volume in enumerate(volumes):
        at = f"spec.volumes[{index}]"
        name = volume.get("name", "")
        if not name:
            found.append(errors.required(f"{at}.name"))
        else:
            found += _check_names(f"{at}.name", name, names.dns_label)
        if name in seen:
            found.append(errors.duplicate_value(f"{at}.name", name))
        seen.add(name)
        sources = [key for key in volume if key != "name"]
        found += [
            errors.forbidden_value(f"{at}.{key}", "may not specify more than 1 volume type") for key in sources[1:]
        ]
        if "configMap" in volume and not volume["configMap"].get("name"):
            found.append(errors.required(f"{at}.configMap.name"))
        if "secret" in volume and not volume["secret"].get("secretName"):
            found.append(errors.required(f"{at}.secret.secretName"))
        if "hostPath" in volume and not volume["hostPath"].get("path"):
            found.append(errors.required(f"{at}.hostPath.path"))
        if "persistentVolumeClaim" in volume and not volume["persistentVolumeClaim"].get("claimName"):
            found.append(errors.required(f"{at}.persistentVolumeClaim.claimName"))
        limit = volume.get("emptyDir", {}).get("sizeLimit")
        if limit is not None and quantities.parse(limit) < 0:
            text = "SizeLimit field must be a valid resource quantity"
            found.append(errors.forbidden_value(f"{at}.emptyDir.sizeLimit", text))
    return seen, found


def _tolerations(tolerations: list[Obj]) -> list[Cause]:
    found: list[Cause] = []
    for index, item in enumerate(tolerations):
        at = f"spec.tolerations[{index}]"
        operator = item.get("operator", "Equal")
        if item.get("key"):
            found += _check_names(f"{at}.key", item["key"], names.qualified)
        elif operator != "Exists":
            text = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
            found.append(errors.invalid_value(f"{at}.operator", item.get("operator", ""), text))
        if operator not in ("Equal", "Exists"):
            found.append(errors.unsupported_value(f"{at}.operator", operator, ("Equal", "Exists")))
        if operator == "Exists" and item.get("value"):
            found.append(
                errors.invalid_value(f"{at}.operator", item, "value must be empty when `operator` is 'Exists'")
            )
        if item.get("effect", "") not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
            supported = ("NoSchedule", "PreferNoSchedule", "NoExecute")
            found.append(errors.unsupported_value(f"{at}.effect", item["effect"], supported))
        if "tolerationSeconds" in item and item.get("effect") != "NoExecute":
            text = "effect must be 'NoExecute' when `tolerationSeconds` is set"
            found.append(errors.invalid_value(f"{at}.effect", item.get("effect", ""), text))
    return found


def validate_spec(spec: Obj) -> list[Cause]:
    """All field errors of a (defaulted) pod spec."""
    volumes, found = _volumes(spec.get("volumes", []))
    if not spec.get("containers"):
        found.append(errors.required("spec.containers"))
    seen: set[str] = set()
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind, ())):
            at = f"spec.{kind}[{index}]"
            found += _container(container, volumes, at, kind == "initContainers")
            if container.get("name") in seen:
                found.append(errors.duplicate_value(f"{at}.name", container["name"]))
            seen.add(container.get("name", ""))
    found += _one_of("spec.restartPolicy", spec.get("restartPolicy"), ("Always", "OnFailure", "Never"))
    policies = ("ClusterFirstWithHostNet", "ClusterFirst", "Default", "None")
    found += _one_of("spec.dnsPolicy", spec.get("dnsPolicy"), policies)
    found += _not_negative(spec, "terminationGracePeriodSeconds", "spec")
    if (deadline := spec.get("activeDeadlineSeconds")) is not None and not 1 <= deadline <= 2**31 - 1:
        text = "must be between 1 and 2147483647, inclusive"
        found.append(errors.invalid_value("spec.activeDeadlineSeconds", deadline, text))
    for key, rule in (("hostname", names.dns_label), ("subdomain", names.dns_label), ("nodeName", names.subdomain)):
        if spec.get(key):
            found += _check_names(f"spec.{key}", spec[key], rule)
    if spec.get("serviceAccountName"):
        found += _check_names("spec.serviceAccountName", spec["serviceAccountName"], names.subdomain)
    found += names.labels(spec.get("nodeSelector", {}), "spec.nodeSelector")
    if spec.get("nodeName") and spec.get("schedulingGates"):
        found.append(
            errors.forbidden_value("spec.nodeName", "cannot be set until all schedulingGates have been cleared")
        )
    found += security_rules.pod_context(spec.get("securityContext", {}), "spec.securityContext")
    found += placement_rules.affinity(spec.get("affinity", {}), "spec.affinity")
    spread = spec.get("topologySpreadConstraints", [])
    found += placement_rules.topology_spread(spread, "spec.topologySpreadConstraints")
    return found + _tolerations(spec.get("tolerations", []))
