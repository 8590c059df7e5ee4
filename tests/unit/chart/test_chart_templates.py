"""The chart in each scenario of its ci/: the right objects, with the right rights, and none that a cluster refuses."""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from chart_rendering import CHART, NAMESPACE, ROOT, SCENARIOS, Json, Rendering, helm

from trireme_cli.assets import operator_rules
from trireme_operator.build import Names
from trireme_operator.config import OperatorConfig
from trireme_operator.services.names import own_labels

RULES = operator_rules()
WORKLOADS = (Names(kind="PretrainJob", namespace="n", job="j", uid="u").labels(), own_labels("s", "u"))
DIGEST = "sha256:" + "0" * 63
CRDS = {
    f"CustomResourceDefinition/{p.name.removeprefix('trireme.dev_')[:-5]}.trireme.dev"
    for p in CHART.glob("files/crds/*")
}
USER_ROLES = {f"ClusterRole/trireme-{role}" for role in ("view", "edit", "admin")}
CLUSTER_ROLE = {"ClusterRole/trireme-operator", "ClusterRoleBinding/trireme-operator"}
ELECTION = {"Role/trireme-operator-leader-election", "RoleBinding/trireme-operator-leader-election"}
BASIC = {"Deployment/trireme-operator"}
OWN = {"ServiceAccount/trireme-operator", "Secret/trireme-operator-key", "PodDisruptionBudget/trireme-operator"}
METRICS = {"Service/trireme-operator-metrics"}
DEFAULT = BASIC | OWN | METRICS | ELECTION | CLUSTER_ROLE | USER_ROLES | CRDS


def roles_in(*namespaces: str) -> set[str]:
    return {f"{kind}/{where}trireme-operator" for kind in ("Role", "RoleBinding") for where in namespaces}


EXPECTED: dict[str, set[str]] = {
    "default": DEFAULT,
    "amd-mig": DEFAULT,
    "airgapped": DEFAULT - {"Secret/trireme-operator-key"},
    "minimal": BASIC,
    "monitoring": DEFAULT
    | {"ServiceMonitor/trireme-operator", "PodMonitor/trireme-trainer", "PodMonitor/trireme-serving"}
    | {f"ConfigMap/trireme-dashboard-{p.stem.removeprefix('trireme-')}" for p in CHART.glob("files/dashboards/*.json")}
    | {f"PrometheusRule/trireme-{p.stem.lower()}" for p in CHART.glob("files/rules/*.yaml")},
    "namespaced": BASIC
    | OWN
    | METRICS
    | ELECTION
    | roles_in("team-a/", "team-b/")
    | {"NetworkPolicy/trireme-operator"}
    | {f"NetworkPolicy/team-{team}/trireme-{part}" for team in "ab" for part in ("trainer", "serving")},
    "watched": BASIC
    | OWN
    | METRICS
    | ELECTION
    | roles_in("team-a/", "")
    # Two releases that serve some namespaces each do not share what belongs to the whole cluster.
    | {name.replace("/", f"/{NAMESPACE}-") for name in CLUSTER_ROLE | USER_ROLES}
    | CRDS
    | {"PodMonitor/trireme-trainer", "PodMonitor/trireme-serving"},
    "everything": {
        *CRDS,
        *{f"{kind}/rowers-operator" for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor", "NetworkPolicy")},
        *{"ServiceAccount/rower", "Secret/rowers-operator-key", "Service/rowers-operator-metrics"},
        *{name.replace("trireme", "rowers") for name in CLUSTER_ROLE | ELECTION},
    },
}


@pytest.fixture(scope="module")
def rendered(helm_program: str) -> Callable[[str], Rendering]:
    """The rendering of a scenario, made once."""
    return cache(lambda name: Rendering.of(helm_program, "--values", str(SCENARIOS[name])))


@pytest.fixture(params=sorted(SCENARIOS))
def scenario(request: pytest.FixtureRequest, rendered: Callable[[str], Rendering]) -> Rendering:
    return rendered(request.param)


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_the_linter_finds_nothing(helm_program: str, name: str) -> None:
    done = helm(
        helm_program, "lint", "--strict", str(CHART), "--namespace", NAMESPACE, "--values", str(SCENARIOS[name])
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_a_scenario_makes_these_objects_and_no_others(rendered: Callable[[str], Rendering], name: str) -> None:
    assert rendered(name).inventory == EXPECTED[name]
    assert len(rendered(name).objects) == len(EXPECTED[name]), "no object is rendered twice"


def test_objects_are_valid_ones_of_their_kinds(scenario: Rendering) -> None:
    others = {"CustomResourceDefinition", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
    checked = [found for found in scenario.objects if found["kind"] not in others]
    for found in checked:
        kubernetes_validate.validate(found, "1.32", strict=True)
    assert len(checked) >= 1


def test_crds_are_the_generated_ones_and_say_whether_they_stay(rendered: Callable[[str], Rendering]) -> None:
    generated = {path.name: path.read_bytes() for path in (ROOT / "crds").glob("*.yaml")}
    assert {path.name: path.read_bytes() for path in (CHART / "files" / "crds").glob("*.yaml")} == generated
    kept, dropped = (
        rendered("default").all("CustomResourceDefinition"),
        rendered("everything").all("CustomResourceDefinition"),
    )
    assert [c["metadata"]["annotations"].pop("helm.sh/resource-policy") for c in kept] == ["keep"] * len(generated)
    wanted = {c["metadata"]["name"]: c for c in map(yaml.safe_load, generated.values())}
    assert {c["metadata"]["name"]: c for c in kept} == wanted
    assert {c["metadata"]["name"]: c for c in dropped} == wanted


def refused_by_restricted(pod: Json) -> Iterator[str]:
    """What the Restricted Pod Security Standard forbids, and a root that can be written to.

    Source: https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    """
    context = pod.get("securityContext") or {}
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "a namespace of the host"
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        yield "it may run as root"
    if (context.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in pod.get("volumes") or []:
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume}"
    for container in [*(pod.get("initContainers") or []), *pod["containers"]]:
        own = container.get("securityContext") or {}
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"{container['name']} may gain privileges"
        if "ALL" not in (own.get("capabilities") or {}).get("drop", []) or (own["capabilities"].get("add") or []):
            yield f"{container['name']} has capabilities"
        if (
            own.get("runAsNonRoot") is False
            or own.get("runAsUser") == 0
            or own.get("procMount", "Default") != "Default"
        ):
            yield f"{container['name']} weakens the pod's context"
        if own.get("readOnlyRootFilesystem") is not True:
            yield f"{container['name']} can write to its root"
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield f"{container['name']} takes a port of the host"


def test_the_operators_pods_meet_the_restricted_standard_with_a_read_only_root(scenario: Rendering) -> None:
    pod = scenario.one("Deployment")["spec"]["template"]["spec"]
    assert list(refused_by_restricted(pod)) == []
    assert {"name": "HOME", "value": "/tmp"} in pod["containers"][0]["env"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert next(v for v in pod["volumes"] if v["name"] == mounts["/tmp"])["emptyDir"]


def test_the_check_of_the_restricted_standard_sees_each_breach() -> None:
    bad = {
        "hostNetwork": True,
        "volumes": [{"name": "v", "hostPath": {"path": "/"}}],
        "containers": [{"name": "c", "securityContext": {"runAsUser": 0}, "ports": [{"hostPort": 1}]}],
    }
    assert len(list(refused_by_restricted(bad))) == 9


def held(rendering: Rendering, account: str) -> Iterator[tuple[str, str, list[Json]]]:
    """(scope, role, rules) of each binding of the operator's account."""
    for kind, scope in (("ClusterRole", None), ("Role", "namespace")):
        for binding in rendering.all(f"{kind}Binding"):
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
            assert binding["roleRef"]["kind"] == kind
            where = binding["metadata"][scope] if scope else "*"
            roles = [r for r in rendering.all(kind) if r["metadata"]["name"] == binding["roleRef"]["name"]]
            (role,) = [r for r in roles if r["metadata"].get("namespace", "*") == where]
            yield where, role["metadata"]["name"], role["rules"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("default", {"*": [*RULES["namespaced"], *RULES["nodes"]], NAMESPACE: RULES["leaderElection"]}),
        ("everything", {"*": RULES["namespaced"], NAMESPACE: RULES["leaderElection"]}),
        (
            "namespaced",
            {"team-a": RULES["namespaced"], "team-b": RULES["namespaced"], NAMESPACE: RULES["leaderElection"]},
        ),
        (
            "watched",
            {
                "*": RULES["nodes"],
                "team-a": RULES["namespaced"],
                NAMESPACE: [*RULES["leaderElection"], *RULES["namespaced"]],
            },
        ),
        ("minimal", {}),
    ],
)
def test_the_operators_account_has_exactly_its_rules(
    rendered: Callable[[str], Rendering], name: str, wanted: dict[str, list[Json]]
) -> None:
    rendering = rendered(name)
    account = rendering.one("Deployment")["spec"]["template"]["spec"]["serviceAccountName"]
    found: dict[str, list[Json]] = {}
    for where, _, rules in sorted(held(rendering, account), key=lambda item: item[1], reverse=True):
        found.setdefault(where, []).extend(rules)
    assert found == wanted


def test_a_namespaced_installation_has_nothing_of_the_whole_cluster(rendered: Callable[[str], Rendering]) -> None:
    rendering = rendered("namespaced")
    assert all("namespace" in found["metadata"] for found in rendering.objects)
    assert {found["metadata"]["namespace"] for found in rendering.objects} == {NAMESPACE, "team-a", "team-b"}
    assert rendering.flags["namespaces"] == "team-a,team-b"


def test_users_get_the_kinds_by_kubernetes_own_roles_and_nobody_a_status(rendered: Callable[[str], Rendering]) -> None:
    plurals = {name.split("/")[1].split(".")[0] for name in CRDS}
    for role in ("view", "edit", "admin"):
        found = rendered("default").one("ClusterRole", f"trireme-{role}")
        assert found["metadata"]["labels"][f"rbac.authorization.k8s.io/aggregate-to-{role}"] == "true"
        verbs = {resource: set(rule["verbs"]) for rule in found["rules"] for resource in rule["resources"]}
        assert plurals <= set(verbs)
        assert all(verbs[f"{plural}/status"] == {"get"} for plural in plurals)
        writes = set().union(*verbs.values()) - {"get", "list", "watch"}
        assert bool(writes) == (role != "view")


def parsed(rendering: Rendering) -> OperatorConfig:
    """The flags as the operator itself reads them, in a pod."""
    return OperatorConfig.parse(
        [argument.replace("$(POD_IP)", "10.0.0.9") for argument in rendering.container["args"]],
        {"POD_NAME": "p", "POD_NAMESPACE": NAMESPACE, "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
    )


def test_the_operator_understands_all_its_flags(scenario: Rendering) -> None:
    config = parsed(scenario)
    pod = scenario.one("Deployment")["spec"]["template"]["spec"]
    (port,) = scenario.container["ports"]
    assert config.http_port == port["containerPort"]
    assert config.lease_namespace == NAMESPACE
    assert config.in_cluster
    rules = [rule for role in scenario.all("ClusterRole") for rule in role["rules"]]
    assert config.may_lack_nodes == (not any("nodes" in rule["resources"] for rule in rules))
    mount = next(m for m in scenario.container["volumeMounts"] if m["name"] == "key")
    volume = next(v for v in pod["volumes"] if v["name"] == "key")
    assert str(config.key_file) == f"{mount['mountPath']}/{volume['secret']['items'][0]['path']}"


def test_devices_of_other_names_reach_the_operator(rendered: Callable[[str], Rendering]) -> None:
    found = parsed(rendered("amd-mig")).pod_defaults.device_resources
    assert found == {"*": "amd.com/gpu", "a100-40g": "nvidia.com/mig-3g.20gb", "h100-sxm": "nvidia.com/gpu"}
    assert parsed(rendered("default")).pod_defaults.device_resources == {}


def test_an_air_gapped_cluster_pulls_all_images_from_its_own_registry(rendered: Callable[[str], Rendering]) -> None:
    rendering = rendered("airgapped")
    mirror, config = "registry.example.com:5000/mirror/trireme-dev", parsed(rendering)
    assert rendering.container["image"] == f"{mirror}/trireme-operator@{DIGEST}1"
    assert config.trainer_image == f"{mirror}/trireme-trainer:0.1.0-cpu@{DIGEST}2"
    assert config.serving_image == f"{mirror}/trireme-serving@{DIGEST}3"
    assert config.pod_defaults.image_pull_secrets == ("registry", "registry-of-models")
    pod = rendering.one("Deployment")["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}, {"name": "registry-of-models"}]


def test_the_images_are_of_the_charts_own_version(rendered: Callable[[str], Rendering]) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert project is not None
    assert version == project[1]
    assert rendered("default").container["image"] == f"ghcr.io/trireme-dev/trireme-operator:{version}"


def test_selectors_and_ports_find_the_pods_that_they_are_for(scenario: Rendering) -> None:
    template = scenario.one("Deployment")["spec"]["template"]
    labels, ports = template["metadata"]["labels"].items(), {port["name"] for port in scenario.container["ports"]}
    services = {found["metadata"]["name"]: found for found in scenario.all("Service")}
    for service in services.values():
        assert service["spec"]["selector"].items() <= labels
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for monitor in scenario.all("ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        assert any(wanted <= service["metadata"]["labels"].items() for service in services.values())
    for budget in scenario.all("PodDisruptionBudget"):
        assert budget["spec"]["selector"]["matchLabels"].items() <= labels
    assert scenario.one("Deployment")["spec"]["selector"]["matchLabels"].items() <= labels
    workloads = {"trainer": {"agent", "metrics"}, "serving": {"http", "status", "metrics"}}
    for found in [*scenario.all("PodMonitor"), *scenario.all("NetworkPolicy")]:
        spec = found["spec"]
        wanted = (spec.get("selector") or spec.get("podSelector"))["matchLabels"]
        known = workloads.get(wanted["app.kubernetes.io/component"], ports)
        used = {entry["port"] for entry in spec.get("podMetricsEndpoints") or []}
        used |= {port["port"] for entry in spec.get("ingress") or [] for port in entry.get("ports") or []}
        assert used <= known
        if known is not ports:
            assert any(wanted.items() <= pod.items() for pod in WORKLOADS)


def test_replicas_restart_for_a_new_key_and_only_then(helm_program: str) -> None:
    first, second = (Rendering.of(helm_program, "--set", "crds.enabled=false") for _ in range(2))
    keys = [r.one("Secret")["data"]["key"] for r in (first, second)]
    sums = [r.one("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/key"] for r in (first, second)]
    assert sums == [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    assert keys[0] != keys[1]


def test_dashboards_and_rules_are_taken_from_files_as_they_are(helm_program: str, tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "trireme")
    board = '{"title": "{{job}}", "panels": []}\n'
    alert = {"alert": "A", "expr": 'up{job=~"$x"} == 0', "annotations": {"summary": "{{ $labels.job }}"}}
    rules = "# Alerts.\n" + yaml.safe_dump({"groups": [{"name": "x", "rules": [alert]}]})
    for folder, name, text in (("dashboards", "Sample.json", board), ("rules", "sample.yaml", rules)):
        (chart / "files" / folder).mkdir(exist_ok=True)
        (chart / "files" / folder / name).write_text(text)
    rendering = Rendering.of(helm_program, "--values", str(SCENARIOS["monitoring"]), chart=chart)
    found = rendering.one("ConfigMap", "trireme-dashboard-sample")
    assert found["data"] == {"Sample.json": board}
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["annotations"] == {"grafana_folder": "Trireme"}
    rule = rendering.one("PrometheusRule", "trireme-sample")
    assert rule["spec"] == yaml.safe_load(rules)
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def commented(lines: list[str], key: yaml.Node) -> bool:
    """Whether a comment in the style of helm-docs stands above a key."""
    above = key.start_mark.line - 1
    while lines[above].lstrip().startswith("#") and not lines[above].lstrip().startswith("# -- "):
        above -= 1
    return lines[above].lstrip().startswith("# -- ")


def compare(schema: Json, node: yaml.MappingNode, lines: list[str], path: str = "") -> Iterator[str]:
    """Paths of all commented values; fails for one without a comment, or without its place in the schema."""
    given = {key.value: (key, value) for key, value in node.value}
    assert set(given) == set(schema["properties"]), path
    for name, (key, value) in given.items():
        if commented(lines, key):
            yield f"{path}{name}"
            continue
        child = schema["properties"][name]
        assert isinstance(value, yaml.MappingNode), f"{path}{name} has no comment"
        assert "properties" in child, f"{path}{name} has no comment"
        yield from compare(child, value, lines, f"{path}{name}.")


def test_every_value_has_a_place_in_the_schema_and_a_comment() -> None:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    found = list(compare(schema, root, text.splitlines()))
    assert len(found) > 60


def test_a_schema_refuses_what_is_wrong_by_itself(helm_program: str) -> None:
    for values in ("operator.replica=3", "operator.replicas=-1", "operator.logLevel=LOUD", "global.imageRegistry=a b"):
        done = helm(helm_program, "template", "trireme", str(CHART), "--set", values)
        assert done.returncode != 0, values
        assert "values don't meet the specifications of the schema" in done.stderr
        assert re.search(r"replica|logLevel|imageRegistry", done.stderr)


CONTRADICTIONS: list[tuple[tuple[str, ...], str]] = [
    (("crds.enabled=false", "crds.keep=false"), "crds.keep=false has CRDs deleted with the release"),
    (("rbac.clusterRoles=false",), "rbac.clusterRoles=false needs watchNamespaces"),
    (("rbac.clusterRoles=false", "watchNamespaces={a}", "rbac.nodes=true"), "rbac.nodes=true takes a ClusterRole"),
    (
        ("rbac.clusterRoles=false", "watchNamespaces={a}", "rbac.userRoles=true"),
        "rbac.userRoles=true takes ClusterRoles",
    ),
    (("rbac.create=false", "rbac.nodes=true"), "rbac.create=false makes no roles"),
    (("serviceAccount.create=false",), "serviceAccount.create=false needs serviceAccount.name"),
    (("networkPolicy.workloads=true",), "networkPolicy.workloads=true needs watchNamespaces"),
    (("operator.leaderElection.leaseSeconds=5",), "leaseSeconds > renewDeadlineSeconds > retrySeconds must hold"),
    (
        ("operator.podDisruptionBudget.minAvailable=1", "operator.podDisruptionBudget.maxUnavailable=1"),
        "only one of minAvailable and maxUnavailable",
    ),
    (("operator.podDisruptionBudget.minAvailable=2",), "blocks every drain of a node"),
    (("operator.extraEnv[0].name=HOME", "operator.extraEnv[0].value=/x"), "HOME is set by the chart"),
    (
        ("operator.extraEnv[0].name=TRIREME_OPERATOR_WORKERS", "operator.extraEnv[0].value=x"),
        "TRIREME_OPERATOR_WORKERS would give way to a flag",
    ),
    (("operator.extraArgs={--workers=9}",), "--workers is set by another value"),
    (
        ("monitoring.operator.serviceMonitor.enabled=true", "monitoring.operator.podMonitor.enabled=true"),
        "everything is counted twice",
    ),
    (
        ("monitoring.operator.serviceMonitor.enabled=true", "monitoring.operator.service.enabled=false"),
        "serviceMonitor needs monitoring.operator.service",
    ),
    (("monitoring.operator.serviceMonitor.enabled=true",), "needs the Prometheus operator's CRD ServiceMonitor"),
    (("monitoring.operator.podMonitor.enabled=true",), "needs the Prometheus operator's CRD PodMonitor"),
    (("monitoring.workloads.podMonitor.enabled=true",), "needs the Prometheus operator's CRD PodMonitor"),
    (("monitoring.rules.enabled=true",), "needs the Prometheus operator's CRD PrometheusRule"),
]


@pytest.mark.parametrize(("values", "message"), CONTRADICTIONS, ids=[",".join(values) for values, _ in CONTRADICTIONS])
def test_values_that_contradict_one_another_are_refused_with_what_to_do(
    helm_program: str, values: tuple[str, ...], message: str
) -> None:
    settings = [word for value in values for word in ("--set", value)]
    done = helm(helm_program, "template", "trireme", str(CHART), "--namespace", NAMESPACE, *settings)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "These values of the trireme chart contradict one another" in done.stderr
    assert message in done.stderr


def test_all_contradictions_are_told_at_once(helm_program: str) -> None:
    settings = ["--set", "serviceAccount.create=false,networkPolicy.workloads=true"]
    done = helm(helm_program, "template", "trireme", str(CHART), *settings)
    assert [line for line in done.stderr.splitlines() if line.startswith("- ")] != []
    assert len([line for line in done.stderr.splitlines() if line.startswith("- ")]) == 2


def test_monitors_are_made_where_the_cluster_has_their_kinds(helm_program: str) -> None:
    kinds: list[Any] = ["ServiceMonitor", "PodMonitor", "PrometheusRule"]
    apis = [word for kind in kinds for word in ("--api-versions", f"monitoring.coreos.com/v1/{kind}")]
    values = ["monitoring.operator.serviceMonitor.enabled=true", "monitoring.workloads.podMonitor.enabled=true"]
    rendering = Rendering.of(helm_program, *apis, "--set", ",".join(values))
    assert {found["kind"] for found in rendering.objects} >= {"ServiceMonitor", "PodMonitor"}
