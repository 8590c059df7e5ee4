"""Request bodies in Kubernetes' protobuf encoding, for the kinds that kubectl's typed commands send.

kubectl encodes what it builds itself (`create namespace`, `auth can-i`, `drain`) as protobuf and does not fall back to
JSON. Answers are always JSON, which every client accepts. Field numbers are those of the public wire format.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from . import errors
from .store import Obj

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

# Per message: "number name type". Types: s string, i integer, i? integer whose zero counts, b bool, b? bool whose
# false counts, B bytes, T Time, U MicroTime, I IntOrString, m map of strings, mB map of bytes, mQ map of quantities,
# J embedded JSON, or the name of a message; * marks repetition.
_TABLES = {
    "ObjectMeta": "1 name s,2 generateName s,3 namespace s,5 uid s,6 resourceVersion s,7 generation i,"
    "8 creationTimestamp T,9 deletionTimestamp T,10 deletionGracePeriodSeconds i?,11 labels m,12 annotations m,"
    "13 ownerReferences OwnerReference*,14 finalizers s*,17 managedFields ManagedFieldsEntry*",
    "OwnerReference": "1 kind s,3 name s,4 uid s,5 apiVersion s,6 controller b?,7 blockOwnerDeletion b?",
    "ManagedFieldsEntry": "1 manager s,2 operation s,3 apiVersion s,4 time T,6 fieldsType s,7 fieldsV1 J,"
    "8 subresource s",
    "ObjectReference": "1 kind s,2 namespace s,3 name s,4 uid s,5 apiVersion s,6 resourceVersion s,7 fieldPath s",
    "LocalObjectReference": "1 name s",
    "LabelSelector": "1 matchLabels m,2 matchExpressions LabelSelectorRequirement*",
    "LabelSelectorRequirement": "1 key s,2 operator s,3 values s*",
    "ConfigMap": "1 metadata ObjectMeta,2 data m,3 binaryData mB,4 immutable b?",
    "Secret": "1 metadata ObjectMeta,2 data mB,3 type s,4 stringData m,5 immutable b?",
    "Namespace": "1 metadata ObjectMeta,2 spec NamespaceSpec,3 status NamespaceStatus",
    "NamespaceSpec": "1 finalizers s*",
    "NamespaceStatus": "1 phase s",
    "ServiceAccount": "1 metadata ObjectMeta,2 secrets ObjectReference*,3 imagePullSecrets LocalObjectReference*,"
    "4 automountServiceAccountToken b?",
    "Service": "1 metadata ObjectMeta,2 spec ServiceSpec,3 status ServiceStatus",
    "ServiceSpec": "1 ports ServicePort*,2 selector m,3 clusterIP s,4 type s,5 externalIPs s*,7 sessionAffinity s,"
    "8 loadBalancerIP s,9 loadBalancerSourceRanges s*,10 externalName s,11 externalTrafficPolicy s,"
    "12 healthCheckNodePort i,13 publishNotReadyAddresses b,17 ipFamilyPolicy s,18 clusterIPs s*,19 ipFamilies s*,"
    "20 allocateLoadBalancerNodePorts b?,21 loadBalancerClass s,22 internalTrafficPolicy s,23 trafficDistribution s",
    "ServicePort": "1 name s,2 protocol s,3 port i,4 targetPort I,5 nodePort i,6 appProtocol s",
    "ServiceStatus": "1 loadBalancer LoadBalancerStatus",
    "LoadBalancerStatus": "",
    "ResourceQuota": "1 metadata ObjectMeta,2 spec ResourceQuotaSpec,3 status ResourceQuotaStatus",
    "ResourceQuotaSpec": "1 hard mQ,2 scopes s*",
    "ResourceQuotaStatus": "1 hard mQ,2 used mQ",
    "PriorityClass": "1 metadata ObjectMeta,2 value i?,3 globalDefault b,4 description s,5 preemptionPolicy s",
    "PodDisruptionBudget": "1 metadata ObjectMeta,2 spec PodDisruptionBudgetSpec,3 status PodDisruptionBudgetStatus",
    "PodDisruptionBudgetSpec": "1 minAvailable I,2 selector LabelSelector,3 maxUnavailable I,"
    "4 unhealthyPodEvictionPolicy s",
    "PodDisruptionBudgetStatus": "1 observedGeneration i,3 disruptionsAllowed i?,4 currentHealthy i?,"
    "5 desiredHealthy i?,6 expectedPods i?",
    "Deployment": "1 metadata ObjectMeta,2 spec DeploymentSpec,3 status DeploymentStatus",
    "DeploymentSpec": "1 replicas i?,2 selector LabelSelector,3 template PodTemplateSpec,4 strategy DeploymentStrategy,"
    "5 minReadySeconds i,6 revisionHistoryLimit i?,7 paused b,9 progressDeadlineSeconds i?",
    "DeploymentStrategy": "1 type s,2 rollingUpdate RollingUpdateDeployment",
    "RollingUpdateDeployment": "1 maxUnavailable I,2 maxSurge I",
    "DeploymentStatus": "1 observedGeneration i,2 replicas i,3 updatedReplicas i,4 availableReplicas i,"
    "5 unavailableReplicas i,6 conditions DeploymentCondition*,7 readyReplicas i,8 collisionCount i?",
    "DeploymentCondition": "1 type s,2 status s,4 reason s,5 message s,6 lastUpdateTime T,7 lastTransitionTime T",
    "ReplicaSet": "1 metadata ObjectMeta,2 spec ReplicaSetSpec,3 status ReplicaSetStatus",
    "ReplicaSetSpec": "1 replicas i?,2 selector LabelSelector,3 template PodTemplateSpec,4 minReadySeconds i",
    "ReplicaSetStatus": "1 replicas i,2 fullyLabeledReplicas i,3 observedGeneration i,4 readyReplicas i,"
    "5 availableReplicas i,6 conditions ReplicaSetCondition*",
    "ReplicaSetCondition": "1 type s,2 status s,3 lastTransitionTime T,4 reason s,5 message s",
    "Scale": "1 metadata ObjectMeta,2 spec ScaleSpec,3 status ScaleStatus",
    "ScaleSpec": "1 replicas i",
    "ScaleStatus": "1 replicas i,2 selector s",
    # Of pods, what kubectl builds itself: volumes, probes, security contexts and affinity come as JSON.
    "PodTemplateSpec": "1 metadata ObjectMeta,2 spec PodSpec",
    "PodSpec": "2 containers Container*,3 restartPolicy s,4 terminationGracePeriodSeconds i?,"
    "5 activeDeadlineSeconds i?,6 dnsPolicy s,7 nodeSelector m,8 serviceAccountName s,9 serviceAccount s,10 nodeName s,"
    "11 hostNetwork b,12 hostPID b,13 hostIPC b,15 imagePullSecrets LocalObjectReference*,16 hostname s,17 subdomain s,"
    "19 schedulerName s,20 initContainers Container*,21 automountServiceAccountToken b?,22 tolerations Toleration*,"
    "24 priorityClassName s,25 priority i?,30 enableServiceLinks b?,31 preemptionPolicy s",
    "Container": "1 name s,2 image s,3 command s*,4 args s*,5 workingDir s,6 ports ContainerPort*,7 env EnvVar*,"
    "8 resources ResourceRequirements,13 terminationMessagePath s,14 imagePullPolicy s,16 stdin b,17 stdinOnce b,"
    "18 tty b,20 terminationMessagePolicy s,24 restartPolicy s",
    "ContainerPort": "1 name s,2 hostPort i,3 containerPort i,4 protocol s,5 hostIP s",
    "EnvVar": "1 name s,2 value s",
    "ResourceRequirements": "1 limits mQ,2 requests mQ",
    "Toleration": "1 key s,2 operator s,3 value s,4 effect s,5 tolerationSeconds i?",
    "Role": "1 metadata ObjectMeta,2 rules PolicyRule*",
    "ClusterRole": "1 metadata ObjectMeta,2 rules PolicyRule*,3 aggregationRule AggregationRule",
    "AggregationRule": "1 clusterRoleSelectors LabelSelector*",
    "PolicyRule": "1 verbs s*,2 apiGroups s*,3 resources s*,4 resourceNames s*,5 nonResourceURLs s*",
    "RoleBinding": "1 metadata ObjectMeta,2 subjects Subject*,3 roleRef RoleRef",
    "ClusterRoleBinding": "1 metadata ObjectMeta,2 subjects Subject*,3 roleRef RoleRef",
    "Subject": "1 kind s,2 apiGroup s,3 name s,4 namespace s",
    "RoleRef": "1 apiGroup s,2 kind s,3 name s",
    "TokenRequest": "1 metadata ObjectMeta,2 spec TokenRequestSpec,3 status TokenRequestStatus",
    "TokenRequestSpec": "1 audiences s*,3 boundObjectRef BoundObjectReference,4 expirationSeconds i?",
    "TokenRequestStatus": "1 token s,2 expirationTimestamp T",
    "BoundObjectReference": "1 kind s,2 apiVersion s,3 name s,4 uid s",
    "SelfSubjectReview": "1 metadata ObjectMeta,2 status SelfSubjectReviewStatus",
    "SelfSubjectReviewStatus": "1 userInfo UserInfo",
    "UserInfo": "1 username s,2 uid s,3 groups s*",
    "SelfSubjectAccessReview": "1 metadata ObjectMeta,2 spec AccessSpec,3 status AccessStatus",
    "SubjectAccessReview": "1 metadata ObjectMeta,2 spec AccessSpec,3 status AccessStatus",
    "LocalSubjectAccessReview": "1 metadata ObjectMeta,2 spec AccessSpec,3 status AccessStatus",
    "AccessSpec": "1 resourceAttributes ResourceAttributes,2 nonResourceAttributes NonResourceAttributes,3 user s,"
    "4 groups s*,6 uid s",
    "AccessStatus": "1 allowed b,2 reason s,3 evaluationError s,4 denied b",
    "ResourceAttributes": "1 namespace s,2 verb s,3 group s,4 version s,5 resource s,6 subresource s,7 name s",
    "NonResourceAttributes": "1 path s,2 verb s",
    "SelfSubjectRulesReview": "1 metadata ObjectMeta,2 spec RulesSpec,3 status RulesStatus",
    "RulesSpec": "1 namespace s",
    "RulesStatus": "3 incomplete b",
    "Eviction": "1 metadata ObjectMeta,2 deleteOptions DeleteOptions",
    "DeleteOptions": "1 gracePeriodSeconds i?,2 preconditions Preconditions,3 orphanDependents b?,"
    "4 propagationPolicy s,5 dryRun s*",
    "Preconditions": "1 uid s,2 resourceVersion s",
    "Binding": "1 metadata ObjectMeta,2 target ObjectReference",
    "Lease": "1 metadata ObjectMeta,2 spec LeaseSpec",
    "LeaseSpec": "1 holderIdentity s,2 leaseDurationSeconds i?,3 acquireTime U,4 renewTime U,5 leaseTransitions i?",
    "Event": "1 metadata ObjectMeta,2 involvedObject ObjectReference,3 reason s,4 message s,5 source EventSource,"
    "6 firstTimestamp T,7 lastTimestamp T,8 count i,9 type s,10 eventTime U,11 series EventSeries,12 action s,"
    "13 related ObjectReference,14 reportingComponent s,15 reportingInstance s",
    "EventSource": "1 component s,2 host s",
    "EventSeries": "1 count i,2 lastObservedTime U",
}  # fmt: skip
# Events of events.k8s.io number their fields differently.
_CORE_ONLY = {"Event": "v1"}


def _parse(text: str) -> dict[int, tuple[str, str]]:
    rows = (row.split() for row in text.split(",") if row)
    return {int(number): (name, kind) for number, name, kind in rows}


_MESSAGES = {name: _parse(text) for name, text in _TABLES.items()}


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        result |= (byte & 0x7F) << shift
        position += 1
        if not byte & 0x80:
            return result, position
        shift += 7


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) pairs of a message: integers for varints, bytes for everything with a length."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire = key & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield key >> 3, value - (1 << 64) if value >= 1 << 63 else value
        elif wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError(f"field {key >> 3} of {length} bytes ends after the message")
            yield key >> 3, data[position : position + length]
            position += length
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} is not used by Kubernetes")


def _time(data: bytes, micro: bool) -> str | None:
    parts = dict(_fields(data))
    if not parts.get(1):
        return None
    moment = datetime.fromtimestamp(parts[1], UTC).replace(microsecond=parts.get(2, 0) // 1000 if micro else 0)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ" if micro else "%Y-%m-%dT%H:%M:%SZ")


def _value(kind: str, value: Any) -> Any:
    """One decoded value; None where Go's JSON would leave the field out."""
    if kind == "s":
        return value.decode() or None
    if kind in ("i", "b"):
        return (bool(value) if kind == "b" else value) or None
    if kind == "i?":
        return value
    if kind == "b?":
        return bool(value)
    if kind == "B":
        return base64.b64encode(value).decode()
    if kind in ("T", "U"):
        return _time(value, kind == "U")
    if kind == "I":
        parts = dict(_fields(value))
        return parts.get(3, b"").decode() if parts.get(1) else parts.get(2, 0)
    if kind == "Q":
        return dict(_fields(value)).get(1, b"").decode()
    if kind == "J":
        raw = dict(_fields(value)).get(1, b"")
        return json.loads(raw) if raw else None
    return _message(kind, value)


def _message(name: str, data: bytes) -> Obj:
    table = _MESSAGES[name]
    result: Obj = {}
    for number, value in _fields(data):
        if number not in table:
            if not value:
                continue  # Go writes empty strings and messages too
            raise ValueError(f"{name} has a field {number} that this server does not decode")
        field, kind = table[number]
        if kind.startswith("m"):
            pair = dict(_fields(value))
            item = {"m": "s", "mB": "B", "mQ": "Q"}[kind]
            decoded = _value(item, pair.get(2, b""))
            result.setdefault(field, {})[pair.get(1, b"").decode()] = "" if decoded is None else decoded
        elif kind.endswith("*"):
            decoded = value.decode() if kind == "s*" else _value(kind[:-1], value)
            result.setdefault(field, []).append(decoded)
        elif (decoded := _value(kind, value)) is not None:
            result[field] = decoded
    return result


def decode(raw: bytes) -> Obj:
    """The object in a protobuf body. Raises ApiError 400 when it is malformed, 415 for a kind without a table."""
    try:
        if not raw.startswith(_MAGIC):
            raise ValueError("the body does not start with the bytes of a Kubernetes protobuf message")
        envelope = dict(_fields(raw[len(_MAGIC) :]))
        kinds = dict(_fields(envelope.get(1, b"")))
        version, kind = kinds.get(1, b"").decode(), kinds.get(2, b"").decode()
        if kind not in _MESSAGES or _CORE_ONLY.get(kind, version) != version:
            what = f"{MEDIA_TYPE} of kind {kind} in {version}"
            raise errors.unsupported_media_type(what, ("application/json", "application/yaml"))
        return {"apiVersion": version, "kind": kind, **_message(kind, envelope.get(2, b""))}
    except (ValueError, IndexError, AttributeError, TypeError, OverflowError, OSError) as error:
        # A field whose wire type is not that of its kind shows as one of these.
        raise errors.bad_request(f"couldn't decode the protobuf body: {error}") from None
