"""Services (headless or with an allocated cluster IP) and EndpointSlices."""

from __future__ import annotations

import ipaddress
from typing import Any

from .. import errors, names
from ..errors import Cause
from ..resource import Column, Strategy, WithStatus
from ..store import Obj
from ..tables import AGE, NAME, object_age

CLUSTER_NETWORK = ipaddress.IPv4Network("10.96.0.0/16")
_AFFINITIES = ("ClientIP", "None")
_AFFINITY_SECONDS, _MAX_AFFINITY_SECONDS = 10800, 86400
_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")


class ServiceStrategy(WithStatus):
    """Services; cluster IPs are allocated by the server on create."""

    name_rule = staticmethod(names.dns_1035)
    returns_deleted = True
    create_on_update = True
    columns = (
        NAME,
        Column("Type", description="type determines how the Service is exposed."),
        Column("Cluster-IP", description="clusterIP is the IP address of the service."),
        Column("External-IP", description="externalIPs is a list of IP addresses for which nodes accept traffic."),
        Column("Port(s)", description="The list of ports that are exposed by this service."),
        AGE,
        Column("Selector", description="Route service traffic to pods with matching labels.", priority=1),
    )

    def prepare_create(self, obj: Obj) -> None:
        obj["status"] = {"loadBalancer": {}}

    def default(self, obj: Obj) -> None:
        spec = obj.setdefault("spec", {})
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["sessionAffinity"] == "ClientIP":
            config = spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {})
            config.setdefault("timeoutSeconds", _AFFINITY_SECONDS)
        for port in spec.get("ports", ()):
            port.setdefault("protocol", "TCP")
            if port.get("targetPort") in (None, 0, ""):
                port["targetPort"] = port.get("port")
        if spec["type"] != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            spec.setdefault("ipFamilies", ["IPv4"])
            if "clusterIP" in spec and not spec.get("clusterIPs"):
                spec["clusterIPs"] = [spec["clusterIP"]]
            elif spec.get("clusterIPs") and "clusterIP" not in spec:
                spec["clusterIP"] = spec["clusterIPs"][0]
        if spec["type"] in ("NodePort", "LoadBalancer"):
            spec.setdefault("externalTrafficPolicy", "Cluster")

    def prepare_update(self, new: Obj, old: Obj) -> None:
        super().prepare_update(new, old)
        # A client that leaves the allocated address out keeps it.
        for key in ("clusterIP", "clusterIPs"):
            if key not in new["spec"] and key in old["spec"] and new["spec"]["type"] != "ExternalName":
                new["spec"][key] = old["spec"][key]

    def validate(self, obj: Obj) -> list[Cause]:
        spec, found = obj["spec"], []
        if spec["type"] not in _TYPES:
            found.append(errors.unsupported_value("spec.type", spec["type"], _TYPES))
        headless = spec.get("clusterIP") == "None"
        if not spec.get("ports") and not headless and spec["type"] != "ExternalName":
            found.append(errors.required("spec.ports"))
        if spec["type"] == "ExternalName" and not spec.get("externalName"):
            found.append(errors.required("spec.externalName"))
        if headless and spec["type"] in ("NodePort", "LoadBalancer"):
            text = f"may not be set to 'None' for {spec['type']} services"
            found.append(errors.invalid_value("spec.clusterIPs[0]", "None", text))
        seen_names, seen_ports = set(), set()
        for index, port in enumerate(spec.get("ports", ())):
            at = f"spec.ports[{index}]"
            name = port.get("name", "")
            if not name and len(spec["ports"]) > 1:
                found.append(errors.required(f"{at}.name"))
            elif name:
                found += [errors.invalid_value(f"{at}.name", name, text) for text in names.dns_label(name)]
                if name in seen_names:
                    found.append(errors.duplicate_value(f"{at}.name", name))
                seen_names.add(name)
            if not 0 < port.get("port", 0) < 65536:
                text = "must be between 1 and 65535, inclusive"
                found.append(errors.invalid_value(f"{at}.port", port.get("port", 0), text))
            if port["protocol"] not in ("SCTP", "TCP", "UDP"):
                found.append(errors.unsupported_value(f"{at}.protocol", port["protocol"], ("SCTP", "TCP", "UDP")))
            key = (port["protocol"], port.get("port"))
            if key in seen_ports:
                found.append(errors.duplicate_value(at, {"port": key[1], "protocol": key[0]}))
            seen_ports.add(key)
            found += _target_port(port.get("targetPort"), f"{at}.targetPort")
        found += _affinity(spec)
        return found + names.labels(spec.get("selector", {}), "spec.selector")

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        found = self.validate(new)
        before, after = old["spec"].get("clusterIP"), new["spec"].get("clusterIP")
        if before and before != after and new["spec"]["type"] != "ExternalName":
            text = "may not change once set"
            found.append(errors.invalid_value("spec.clusterIPs[0]", new["spec"].get("clusterIPs"), text))
        return found

    def cells(self, obj: Obj) -> list[Any]:
        spec = obj.get("spec", {})
        ports = ",".join(
            f"{port['port']}:{port['nodePort']}/{port['protocol']}"
            if port.get("nodePort")
            else f"{port['port']}/{port['protocol']}"
            for port in spec.get("ports", ())
        )
        selector = ",".join(f"{key}={value}" for key, value in sorted(spec.get("selector", {}).items()))
        external = ",".join(spec.get("externalIPs", ())) or spec.get("externalName") or "<none>"
        return [
            obj["metadata"]["name"],
            spec.get("type", ""),
            spec.get("clusterIP") or "<none>",
            external,
            ports or "<none>",
            object_age(obj),
            selector or "<none>",
        ]


def _target_port(port: Any, field: str) -> list[Cause]:
    """A number, or the name of a container's port."""
    if isinstance(port, int) and not 0 < port < 65536:
        return [errors.invalid_value(field, port, "must be between 1 and 65535, inclusive")]
    if isinstance(port, str):
        return [errors.invalid_value(field, port, text) for text in names.port_name(port)]
    return []


def _affinity(spec: Obj) -> list[Cause]:
    kind, config = spec["sessionAffinity"], spec.get("sessionAffinityConfig")
    if kind not in _AFFINITIES:
        return [errors.unsupported_value("spec.sessionAffinity", kind, _AFFINITIES)]
    if kind == "None":
        text = "must not be set when session affinity is None"
        return [] if config is None else [errors.forbidden_value("spec.sessionAffinityConfig", text)]
    seconds = config["clientIP"]["timeoutSeconds"] if config else 0
    if 0 < seconds <= _MAX_AFFINITY_SECONDS:
        return []
    text = f"must be greater than 0 and less than {_MAX_AFFINITY_SECONDS}"
    return [errors.invalid_value("spec.sessionAffinityConfig.clientIP.timeoutSeconds", seconds, text)]


def allocate_cluster_ip(obj: Obj, taken: set[str], network: ipaddress.IPv4Network) -> None:
    """Give a Service a free cluster IP of `network` when its type needs one. Raises ApiError 422 for one in use."""
    spec = obj["spec"]
    if spec["type"] == "ExternalName" or spec.get("clusterIP") == "None":
        return
    asked = spec.get("clusterIP")
    if asked:
        try:
            valid = ipaddress.ip_address(asked) in network
        except ValueError:
            valid = False
        if not valid or asked in taken:
            why = "provided IP is already allocated" if valid else f"the provided IP is not in {network}"
            text = f"failed to allocate IP {asked}: {why}"
            cause = errors.invalid_value("spec.clusterIPs", [asked], text)
            raise errors.invalid("", "Service", obj["metadata"]["name"], [cause])
        return
    # Address 1 belongs to the `kubernetes` service.
    for address in network.hosts():
        if str(address) not in taken and address != network[1]:
            spec["clusterIP"] = str(address)
            spec["clusterIPs"] = [str(address)]
            return
    raise errors.ApiError(500, "InternalError", f"Internal error occurred: {network} range is full")


def _endpoint_address(address: str, kind: str, field: str) -> list[Cause]:
    """An address of an endpoint. Source: ValidateEndpointIP of Kubernetes' pkg/apis/core/validation."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return [errors.invalid_value(field, address, f"must be a valid {kind} address")]
    if f"IPv{parsed.version}" != kind:
        return [errors.invalid_value(field, address, f"must be an {kind} address")]
    special = {
        "may not be unspecified (0.0.0.0 or ::)": parsed.is_unspecified,
        "may not be in the loopback range (127.0.0.0/8, ::1/128)": parsed.is_loopback,
        "may not be in the link-local range (169.254.0.0/16, fe80::/10)": parsed.is_link_local,
    }
    return [errors.invalid_value(field, address, text) for text, holds in special.items() if holds]


class EndpointSliceStrategy(Strategy):
    """EndpointSlices."""

    has_generation = True
    create_on_update = True
    columns = (
        NAME,
        Column("AddressType", description="addressType specifies the type of address."),
        Column("Ports", description="The list of network ports exposed."),
        Column("Endpoints", description="The list of unique endpoints."),
        AGE,
    )

    def generation_changed(self, new: Obj, old: Obj) -> bool:
        return any(new.get(key) != old.get(key) for key in ("endpoints", "ports", "addressType"))

    def default(self, obj: Obj) -> None:
        for port in obj.get("ports") or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")

    def validate(self, obj: Obj) -> list[Cause]:
        kind = obj.get("addressType", "")
        if kind not in ("FQDN", "IPv4", "IPv6"):
            return [
                errors.required("addressType")
                if not kind
                else errors.unsupported_value("addressType", kind, ("FQDN", "IPv4", "IPv6"))
            ]
        found: list[Cause] = []
        for index, endpoint in enumerate(obj.get("endpoints") or ()):
            at = f"endpoints[{index}].addresses"
            if not endpoint.get("addresses"):
                found.append(errors.required(at, "must contain at least 1 address"))
            elif kind != "FQDN":
                for position, address in enumerate(endpoint["addresses"]):
                    found += _endpoint_address(address, kind, f"{at}[{position}]")
        return found

    def validate_update(self, new: Obj, old: Obj) -> list[Cause]:
        if new.get("addressType") != old.get("addressType"):
            return [errors.invalid_value("addressType", new.get("addressType"), "field is immutable")]
        return self.validate(new)

    def cells(self, obj: Obj) -> list[Any]:
        ports = ",".join(str(port.get("port", "*")) for port in obj.get("ports") or ())
        addresses = [address for item in obj.get("endpoints") or () for address in item.get("addresses", ())]
        shown = ",".join(addresses[:3]) + (f" + {len(addresses) - 3} more..." if len(addresses) > 3 else "")
        return [
            obj["metadata"]["name"],
            obj.get("addressType", ""),
            ports or "<unset>",
            shown or "<unset>",
            object_age(obj),
        ]
