"""Decoding of bodies: times, quantities, collections, protobuf, YAML; and CEL values and checks."""

from __future__ import annotations

import base64
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trireme_local.apiserver import cel, definitions, protobuf, structural
from trireme_local.apiserver.decode import DecodeError, Decoder
from trireme_local.apiserver.errors import ApiError

LEASE = "io.k8s.api.coordination.v1.Lease"
POD = "io.k8s.api.core.v1.Pod"


def decode(definition: str, value: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    decoder = Decoder()
    return decoder.decode(value, definitions.named(definition)), decoder.unknown


def test_a_micro_time_needs_six_decimals_and_becomes_utc() -> None:
    decoded, _ = decode(LEASE, {"spec": {"renewTime": "2026-01-01T02:00:00.250000+02:00"}})
    assert decoded["spec"]["renewTime"] == "2026-01-01T00:00:00.250000Z"
    for text in ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00.25Z", "yesterday"):
        with pytest.raises(DecodeError, match="parsing time"):
            decode(LEASE, {"spec": {"renewTime": text}})


def test_a_time_keeps_whole_seconds() -> None:
    decoded, _ = decode(POD, {"status": {"startTime": "2026-01-01T00:00:00.999999999Z"}})
    assert decoded["status"]["startTime"] == "2026-01-01T00:00:00Z"


def test_nulls_and_empty_optional_collections_disappear_and_empty_structs_stay() -> None:
    body = {"metadata": {"labels": {}, "annotations": None}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    decoded, unknown = decode(POD, body)
    assert decoded == {"metadata": {}, "spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    assert unknown == []


def test_unknown_fields_are_named_by_their_path() -> None:
    _, unknown = decode(POD, {"spec": {"containers": [{"name": "c", "imag": "x"}], "hostNetwrk": True}})
    assert unknown == ["spec.containers[0].imag", "spec.hostNetwrk"]


@pytest.mark.parametrize(
    "spec",
    [
        {"containers": {}},
        {"hostNetwork": "yes"},
        {"terminationGracePeriodSeconds": 1.5},
        {"terminationGracePeriodSeconds": 2**63},
        {"containers": [{"name": 1}]},
        {"overhead": {"cpu": "lots"}},
    ],
)
def test_a_value_of_the_wrong_type_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        decode(POD, {"spec": spec})


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def envelope(version: str, kind: str, body: bytes) -> bytes:
    types = message(1, version.encode()) + message(2, kind.encode())
    return b"k8s\x00" + message(1, types) + message(2, body)


@given(st.dictionaries(st.text(max_size=20), st.binary(max_size=200), max_size=5))
def test_a_protobuf_secret_keeps_its_bytes(data: dict[str, bytes]) -> None:
    body = message(1, message(1, b"s"))
    body += b"".join(message(2, message(1, key.encode()) + message(2, value)) for key, value in data.items())
    found = protobuf.decode(envelope("v1", "Secret", body))
    assert found["metadata"] == {"name": "s"}
    assert {key: base64.b64decode(value) for key, value in found.get("data", {}).items()} == data


@given(st.binary(max_size=60))
def test_broken_protobuf_raises_nothing_but_api_errors(raw: bytes) -> None:
    for body in (raw, b"k8s\x00" + raw, envelope("v1", "ConfigMap", raw)):
        with contextlib.suppress(ApiError):
            protobuf.decode(body)


def test_a_protobuf_kind_without_a_table_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        protobuf.decode(envelope("apps/v1", "StatefulSet", b""))
    assert caught.value.code == 415


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "rate": {"type": "number"},
        "when": {"type": "string", "format": "date-time"},
        "wait": {"type": "string", "format": "duration"},
        "my-name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
VALUE = {
    "rate": 2,
    "when": "2026-01-01T00:00:00Z",
    "wait": "90s",
    "my-name": "n",
    "namespace": "ns",
    "labels": {"my-key": "v"},
}


@pytest.mark.parametrize(
    "rule",
    [
        "self.rate / 4.0 == 0.5",
        "self.when < timestamp('2026-01-02T00:00:00Z')",
        "self.wait > duration('1m')",
        "self.my__dash__name == 'n'",
        "self.__namespace__ == 'ns'",
        "self.labels['my-key'] == 'v'",
        "self.labels.all(key, key.startsWith('my-'))",
        "'self.missing' != ''",
    ],
)
def test_values_have_the_types_that_the_schema_gives_them(rule: str) -> None:
    assert cel.check_rule(rule, SCHEMA) == ""
    schema = {**SCHEMA, "x-kubernetes-validations": [{"rule": rule}]}
    assert cel.Rules({"type": "object", "properties": {"spec": schema}}).evaluate({"spec": VALUE}, None) == []


def test_a_rule_that_fails_to_evaluate_is_a_violation() -> None:
    schema = {**SCHEMA, "x-kubernetes-validations": [{"rule": "self.rate > 1.0", "message": "slow"}]}
    (cause,) = cel.Rules({"type": "object", "properties": {"spec": schema}}).evaluate({"spec": {}}, None)
    assert str(cause) == (
        'spec: Invalid value: "object": rule evaluation error: no such key: rate evaluating rule: slow'
    )


def test_old_self_may_be_optional() -> None:
    rule = {
        "rule": "!oldSelf.hasValue() || oldSelf.value() == self",
        "optionalOldSelf": True,
        "reason": "FieldValueForbidden",
    }
    rules = cel.Rules({"type": "object", "properties": {"x": {"type": "integer", "x-kubernetes-validations": [rule]}}})
    assert rules.evaluate({"x": 1}, None) == []
    assert rules.evaluate({"x": 1}, {"x": 1}) == []
    (cause,) = rules.evaluate({"x": 2}, {"x": 1})
    assert cause.reason == "FieldValueForbidden"


def test_rules_of_one_node_may_see_old_self_in_both_forms() -> None:
    plain, optional = {"rule": "self == oldSelf"}, {"rule": "oldSelf.orValue(self) == self", "optionalOldSelf": True}
    node = {"type": "integer", "x-kubernetes-validations": [plain, optional, plain]}
    rules = cel.Rules({"type": "object", "properties": {"x": node}})
    assert rules.evaluate({"x": 1}, {}) == []
    assert rules.evaluate({"x": 1}, {"x": 1}) == []
    assert len(rules.evaluate({"x": 2}, {"x": 1})) == 3


def test_a_comparison_sees_the_fields_that_the_schema_does_not_know() -> None:
    item = {"type": "object", "properties": {"name": {"type": "string"}}, "x-kubernetes-preserve-unknown-fields": True}
    rule = {"rule": "self.v == oldSelf.v"}
    schema = {"type": "object", "properties": {"v": item}, "x-kubernetes-validations": [rule]}
    old = {"v": {"name": "a", "secret": {"name": "s"}}}
    assert cel.Rules(schema).evaluate(old, old) == []
    assert len(cel.Rules(schema).evaluate({"v": {"name": "a", "secret": {"name": "t"}}}, old)) == 1


@given(st.dictionaries(st.sampled_from("abcd"), st.integers() | st.text(max_size=3) | st.none(), max_size=4))
def test_pruning_and_defaulting_are_idempotent(value: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer", "default": 1}, "b": {"type": "string"}}}
    unknown: list[str] = []
    once = structural.prune(schema, value, "", unknown)
    structural.apply_defaults(schema, once)
    twice = structural.prune(schema, once, "", [])
    structural.apply_defaults(schema, twice)
    assert once == twice
    assert set(unknown) == set(value) - {"a", "b"}
    assert once["a"] is not None
