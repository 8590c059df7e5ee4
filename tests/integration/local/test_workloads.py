"""Deployments and ReplicaSets on a cluster that runs their pods, through kubectl."""

import json
import time
from typing import Any

from local_cluster_tools import Kubectl, shell_pod

Json = dict[str, Any]


def deployment(name: str, replicas: int, script: str = "sleep 300", **spec: Any) -> Json:
    """A Deployment of shells that end at SIGTERM."""
    labels = {"app": name}
    container = {"name": "main", "image": "busybox", "command": ["sh", "-c", f"trap 'exit 0' TERM; {script} & wait"]}
    template = {
        "metadata": {"labels": labels},
        "spec": {"terminationGracePeriodSeconds": 3, "containers": [container]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template, **spec},
    }


def listed(kubectl: Kubectl, kind: str, app: str) -> list[Json]:
    found: list[Json] = json.loads(kubectl.run("get", kind, "-l", f"app={app}", "-o", "json"))["items"]
    return found


def rolled_out(kubectl: Kubectl, name: str) -> None:
    kubectl.run("rollout", "status", f"deployment/{name}", "--timeout=50s")


def image_of(kubectl: Kubectl, name: str) -> set[str]:
    """The images of the pods that stay."""
    pods = [item for item in listed(kubectl, "pods", name) if not item["metadata"].get("deletionTimestamp")]
    return {item["spec"]["containers"][0]["image"] for item in pods}


def conditions(obj: Json) -> dict[str, tuple[str, str]]:
    return {item["type"]: (item["status"], item["reason"]) for item in obj["status"].get("conditions") or []}


def test_a_deployment_is_created_updated_rolled_back_scaled_and_deleted_with_its_pods(kubectl: Kubectl) -> None:
    kubectl.run("delete", "deployment", "life", "--ignore-not-found")
    kubectl.run("create", "deployment", "life", "--image=busybox", "--replicas=2", "--", "sleep", "300")
    rolled_out(kubectl, "life")
    first = kubectl.get("deployment", "life")
    assert conditions(first) == {
        "Available": ("True", "MinimumReplicasAvailable"),
        "Progressing": ("True", "NewReplicaSetAvailable"),
    }
    assert first["status"]["observedGeneration"] == first["metadata"]["generation"]
    kubectl.run("set", "image", "deployment/life", "busybox=local/shell:1")
    rolled_out(kubectl, "life")
    kubectl.wait("only new pods", lambda: image_of(kubectl, "life") == {"local/shell:1"})
    assert "revision" in kubectl.run("rollout", "history", "deployment/life", "--revision=2")
    kubectl.run("rollout", "undo", "deployment/life")
    rolled_out(kubectl, "life")
    kubectl.wait("the old image again", lambda: image_of(kubectl, "life") == {"busybox"})
    revisions = {
        item["metadata"]["annotations"]["deployment.kubernetes.io/revision"]
        for item in listed(kubectl, "replicasets", "life")
    }
    assert revisions == {"2", "3"}, "the first ReplicaSet came back as the third revision"
    kubectl.run("scale", "deployment/life", "--replicas=4", "--current-replicas=2")
    kubectl.wait("four ready", lambda: kubectl.get("deployment", "life")["status"].get("readyReplicas") == 4)
    kubectl.run("scale", "deployment/life", "--replicas=1")
    kubectl.wait("one left", lambda: len(listed(kubectl, "pods", "life")) == 1)
    header = kubectl.run("get", "deployments", "life", "-o", "wide").splitlines()[0].split()
    assert header == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]
    kubectl.run("delete", "deployment", "life", "--timeout=20s")
    for kind in ("replicasets", "pods"):
        kubectl.wait(f"{kind} go", lambda kind=kind: listed(kubectl, kind, "life") == [])


def test_foreground_deletion_ends_with_the_deployment_and_orphaning_leaves_the_pods(kubectl: Kubectl) -> None:
    kubectl.apply(deployment("front", 1), deployment("left", 1))
    for name in ("front", "left"):
        rolled_out(kubectl, name)
    kubectl.run("delete", "deployment", "front", "--cascade=foreground", "--timeout=40s")
    assert listed(kubectl, "replicasets", "front") == []
    kubectl.run("delete", "deployment", "left", "--cascade=orphan", "--timeout=20s")
    [replica_set] = listed(kubectl, "replicasets", "left")
    assert not replica_set["metadata"].get("ownerReferences")
    kubectl.apply(deployment("left", 2))
    rolled_out(kubectl, "left")
    [adopted] = listed(kubectl, "replicasets", "left")
    assert adopted["metadata"]["uid"] == replica_set["metadata"]["uid"], "a Deployment takes what it selects"
    kubectl.run("delete", "deployment", "left", "--wait=false")


def test_a_rollout_that_cannot_progress_says_so_and_keeps_the_old_pods(kubectl: Kubectl) -> None:
    rolling = {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    kubectl.apply(deployment("stuck", 2, progressDeadlineSeconds=2, strategy=rolling))
    rolled_out(kubectl, "stuck")
    kubectl.run("set", "image", "deployment/stuck", "main=registry.example/none:1")
    expected = ("False", "ProgressDeadlineExceeded")
    kubectl.wait("given up", lambda: conditions(kubectl.get("deployment", "stuck")).get("Progressing") == expected)
    status = kubectl.get("deployment", "stuck")["status"]
    assert (status["readyReplicas"], status["updatedReplicas"], status["unavailableReplicas"]) == (2, 1, 1)
    assert "exceeded its progress deadline" in kubectl.run("rollout", "status", "deployment/stuck", check=False)
    kubectl.run("rollout", "undo", "deployment/stuck")
    rolled_out(kubectl, "stuck")
    assert image_of(kubectl, "stuck") == {"busybox"}
    kubectl.run("delete", "deployment", "stuck", "--wait=false")


def test_recreate_starts_no_new_pod_before_the_last_old_one_is_gone(kubectl: Kubectl) -> None:
    manifest = deployment("again", 2, strategy={"type": "Recreate"}, minReadySeconds=1)
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["lifecycle"] = {"preStop": {"sleep": {"seconds": 1}}}
    kubectl.apply(manifest)
    rolled_out(kubectl, "again")
    kubectl.run("set", "env", "deployment/again", "ROUND=two")
    deadline = time.monotonic() + 40
    while True:
        pods = listed(kubectl, "pods", "again")
        rounds = {len(item["spec"]["containers"][0].get("env", [])) for item in pods}
        assert len(rounds) <= 1, "old and new pods at once"
        if rounds == {1} and kubectl.get("deployment", "again")["status"].get("readyReplicas") == 2:
            break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    kubectl.run("delete", "deployment", "again", "--wait=false")


def test_a_paused_deployment_is_scaled_but_not_rolled_out(kubectl: Kubectl) -> None:
    kubectl.apply(deployment("calm", 1, revisionHistoryLimit=1))
    rolled_out(kubectl, "calm")
    kubectl.run("rollout", "pause", "deployment/calm")
    kubectl.run("set", "env", "deployment/calm", "A=1")
    kubectl.run("scale", "deployment/calm", "--replicas=2")
    kubectl.wait("two pods", lambda: kubectl.get("deployment", "calm")["status"].get("readyReplicas") == 2)
    assert len(listed(kubectl, "replicasets", "calm")) == 1
    assert conditions(kubectl.get("deployment", "calm"))["Progressing"] == ("Unknown", "DeploymentPaused")
    kubectl.run("rollout", "resume", "deployment/calm")
    rolled_out(kubectl, "calm")
    for number in ("2", "3"):
        kubectl.run("set", "env", "deployment/calm", f"A={number}")
        rolled_out(kubectl, "calm")
    kubectl.wait("one old ReplicaSet is kept", lambda: len(listed(kubectl, "replicasets", "calm")) == 2)
    kubectl.run("delete", "deployment", "calm", "--wait=false")


def replica_set(name: str, replicas: int) -> Json:
    manifest = deployment(name, replicas)
    manifest["kind"] = "ReplicaSet"
    return manifest


def test_a_replica_set_adopts_releases_and_replaces_pods(kubectl: Kubectl) -> None:
    alone = shell_pod("alone", "sleep 300", restartPolicy="Always")
    alone["metadata"]["labels"] = {"app": "crew"}
    kubectl.apply(alone)
    kubectl.apply(replica_set("crew", 2))
    kubectl.wait("two ready", lambda: kubectl.get("rs", "crew")["status"].get("readyReplicas") == 2)
    assert {item["metadata"]["name"] == "alone" for item in listed(kubectl, "pods", "crew")} == {True, False}
    assert kubectl.get("pod", "alone")["metadata"]["ownerReferences"][0]["name"] == "crew"
    kubectl.run("label", "pod", "alone", "app=free", "--overwrite")
    kubectl.wait("released", lambda: not kubectl.get("pod", "alone")["metadata"].get("ownerReferences"))
    kubectl.wait("replaced", lambda: kubectl.get("rs", "crew")["status"].get("readyReplicas") == 2)
    [name, _] = [item["metadata"]["name"] for item in listed(kubectl, "pods", "crew")]
    kubectl.run("delete", "pod", name, "--wait=false")
    kubectl.wait("another comes", lambda: name not in kubectl.run("get", "pods", "-l", "app=crew"))
    kubectl.wait("two ready", lambda: kubectl.get("rs", "crew")["status"].get("readyReplicas") == 2)
    kubectl.run("scale", "rs/crew", "--replicas=0")
    kubectl.wait("none left", lambda: listed(kubectl, "pods", "crew") == [])
    kubectl.run("delete", "rs", "crew")
    kubectl.delete_pods("alone")


def test_pods_that_are_refused_show_as_a_failure_of_their_replica_set_and_deployment(kubectl: Kubectl) -> None:
    manifest = deployment("barred", 2, progressDeadlineSeconds=60)
    manifest["spec"]["template"]["spec"]["serviceAccountName"] = "nobody"
    kubectl.apply(manifest)
    kubectl.wait("said", lambda: "ReplicaFailure" in conditions(kubectl.get("deployment", "barred")))
    assert conditions(kubectl.get("deployment", "barred"))["ReplicaFailure"] == ("True", "FailedCreate")
    kubectl.run("create", "serviceaccount", "nobody")
    rolled_out(kubectl, "barred")
    assert "ReplicaFailure" not in conditions(kubectl.get("deployment", "barred"))
    kubectl.run("delete", "deployment,serviceaccount", "barred", "nobody", "--wait=false", "--ignore-not-found")
