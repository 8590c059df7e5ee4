"""What makes a pod Ready besides its containers, and what is probed while it is being stopped."""

from pathlib import Path

from local_cluster_tools import Kubectl, shell_pod


def _condition(kubectl: Kubectl, pod: str, kind: str) -> tuple[str, str]:
    found = kubectl.get("pod", pod)["status"].get("conditions") or []
    return next(((item["status"], item.get("reason", "")) for item in found if item["type"] == kind), ("", ""))


def test_a_readiness_gate_that_somebody_opens_makes_the_pod_ready(kubectl: Kubectl) -> None:
    kubectl.apply(shell_pod("gated", "sleep 300", readinessGates=[{"conditionType": "example.com/open"}]))
    kubectl.wait("containers ready", lambda: _condition(kubectl, "gated", "ContainersReady")[0] == "True")
    assert _condition(kubectl, "gated", "Ready") == ("False", "ReadinessGatesNotReady")
    for status in ("True", "False"):
        patch = f'{{"status":{{"conditions":[{{"type":"example.com/open","status":"{status}"}}]}}}}'
        kubectl.run("patch", "pod", "gated", "--subresource=status", "--type=strategic", "-p", patch)
        kubectl.wait("it follows", lambda status=status: _condition(kubectl, "gated", "Ready")[0] == status, 10)
    kubectl.delete_pods("gated")


def test_a_pod_that_is_being_stopped_is_probed_for_readiness_and_no_longer_for_liveness(
    kubectl: Kubectl, tmp_path: Path
) -> None:
    """The end begins with a preStop hook of three seconds that makes both probes fail."""
    ended = tmp_path / "ended"
    container: dict[str, object] = {
        "lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "touch going; sleep 3; touch prepared"]}}},
        "livenessProbe": {"exec": {"command": ["test", "!", "-e", "going"]}, "periodSeconds": 1, "failureThreshold": 1},
        "readinessProbe": {
            "exec": {"command": ["test", "!", "-e", "going"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
    }
    script = "trap 'ls prepared > /host/ended 2>&1; exit 0' TERM; while :; do sleep 0.1; done"
    container["volumeMounts"] = [{"name": "host", "mountPath": "/host"}]
    volumes = [{"name": "host", "hostPath": {"path": str(tmp_path)}}]
    kubectl.apply(shell_pod("ending", script, container=container, volumes=volumes, terminationGracePeriodSeconds=20))
    kubectl.wait("ready", lambda: _condition(kubectl, "ending", "Ready")[0] == "True")
    kubectl.run("delete", "pod", "ending", "--wait=false")
    kubectl.wait("not ready", lambda: _condition(kubectl, "ending", "Ready")[0] == "False", 10)
    kubectl.wait("gone", lambda: not kubectl.exists("pod", "ending"))
    assert ended.read_text() == "prepared\n", "SIGTERM came once the hook had ended"
