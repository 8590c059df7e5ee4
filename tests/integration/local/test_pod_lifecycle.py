"""What a pod's containers do and what the API server shows of it."""

import subprocess
from typing import Any

from local_cluster_tools import Cluster, Kubectl, main_state, shell_pod

Json = dict[str, Any]


def test_exit_codes_messages_and_logs_reach_the_api(kubectl: Kubectl) -> None:
    kubectl.apply(
        shell_pod("ends-well", "echo out; echo err >&2; echo done > /dev/termination-log"),
        shell_pod("ends-badly", "echo first; exit 7"),
        shell_pod("killed", "kill -9 $$$$"),
        shell_pod(
            "falls-back", "echo the reason; exit 1", container={"terminationMessagePolicy": "FallbackToLogsOnError"}
        ),
        shell_pod("not-a-program", "", container={"command": ["/no/such/program"]}),
    )
    well = kubectl.wait_phase("ends-well", "Succeeded")
    assert main_state(well)["terminated"] | {"startedAt": "", "finishedAt": "", "containerID": ""} == {
        "exitCode": 0,
        "reason": "Completed",
        "message": "done\n",
        "startedAt": "",
        "finishedAt": "",
        "containerID": "",
    }
    conditions = {item["type"]: item for item in well["status"]["conditions"]}
    assert conditions["Ready"]["status"] == "False"
    assert conditions["Ready"]["reason"] == "PodCompleted"
    assert conditions["PodScheduled"]["status"] == "True"
    assert sorted(kubectl.run("logs", "ends-well").split()) == ["err", "out"]
    badly = main_state(kubectl.wait_phase("ends-badly", "Failed"))["terminated"]
    assert (badly["exitCode"], badly["reason"]) == (7, "Error")
    assert main_state(kubectl.wait_phase("killed", "Failed"))["terminated"]["exitCode"] == 137
    assert main_state(kubectl.wait_phase("falls-back", "Failed"))["terminated"]["message"] == "the reason"
    missing = main_state(kubectl.wait_phase("not-a-program", "Failed"))["terminated"]
    assert (missing["exitCode"], missing["reason"]) == (128, "StartError")
    assert "/no/such/program" in missing["message"]


def test_environment_and_volumes_come_from_the_api(kubectl: Kubectl) -> None:
    script = """
    echo "ip=$POD_IP name=$NAME label=$LABEL cpu=$CPU literal=$LITERAL secret=$KEY"
    echo "from=$PRE_color host=$HOSTNAME"
    cat /etc/config/color /etc/secret/renamed /etc/all/labels /etc/all/color; cat $FILE
    echo shared > /scratch/x
    until [ -e /scratch/y ]; do sleep 0.05; done
    test -s $TRIREME_SERVICEACCOUNT_DIR/token && test -s $TRIREME_SERVICEACCOUNT_DIR/ca.crt && echo token
    """
    env = [
        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['test']"}}},
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {"name": "LITERAL", "value": "<$(NAME)>"},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}},
        {"name": "OPTIONAL", "valueFrom": {"secretKeyRef": {"name": "none", "key": "key", "optional": True}}},
        {"name": "FILE", "value": "/etc/config/color"},
    ]
    pod = shell_pod(
        "configured",
        script,
        container={
            "env": env,
            "envFrom": [{"prefix": "PRE_", "configMapRef": {"name": "colors"}}],
            "resources": {"limits": {"cpu": "250m"}},
            "volumeMounts": [
                {"name": "config", "mountPath": "/etc/config"},
                {"name": "secret", "mountPath": "/etc/secret"},
                {"name": "all", "mountPath": "/etc/all"},
                {"name": "scratch", "mountPath": "/scratch"},
                {"name": "account", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
            ],
        },
        volumes=[
            {"name": "config", "configMap": {"name": "colors"}},
            {"name": "secret", "secret": {"secretName": "keys", "items": [{"key": "key", "path": "renamed"}]}},
            {
                "name": "all",
                "projected": {
                    "sources": [
                        {"downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
                        {"configMap": {"name": "colors"}},
                    ]
                },
            },
            {"name": "scratch", "emptyDir": {}},
            {
                "name": "account",
                "projected": {
                    "sources": [
                        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
                        {"configMap": {"name": "kube-root-ca.crt"}},
                    ]
                },
            },
        ],
    )
    sidekick = {
        "name": "sidekick",
        "image": "busybox",
        "command": ["sh", "-c", "until [ -e /data/x ]; do sleep 0.05; done; touch /data/y"],
        "volumeMounts": [{"name": "scratch", "mountPath": "/data"}],
    }
    pod["spec"]["containers"].append(sidekick)
    kubectl.apply(
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "colors"}, "data": {"color": "blue\n"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": "s3cret"}},
        pod,
    )
    done = kubectl.wait_phase("configured", "Succeeded", "Failed")
    text = kubectl.run("logs", "configured", "-c", "main")
    address = done["status"]["podIP"]
    assert address.startswith("127.")
    assert f"ip={address} name=configured label=configured cpu=250 literal=<configured> secret=s3cret" in text
    assert "from=blue" in text
    assert "host=configured" in text
    assert 's3crettest="configured"' in text
    assert text.count("blue") == 4
    assert text.rstrip().endswith("token")
    assert done["status"]["phase"] == "Succeeded", text


def test_what_cannot_start_says_why_and_starts_once_it_can(kubectl: Kubectl) -> None:
    needs_secret = {"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "late", "key": "a"}}}]}
    kubectl.apply(
        shell_pod("no-image", "true", container={"image": "registry.example/none:1"}),
        shell_pod("no-secret", "echo $A", container=needs_secret),
        # A real scheduler would wait for the claim: the pod is given to a node.
        shell_pod(
            "claims", "true", nodeName="node-1", volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]
        ),
    )

    def reason(name: str) -> str:
        return str(main_state(kubectl.get("pod", name)).get("waiting", {}).get("reason"))

    kubectl.wait("image refused", lambda: reason("no-image") in ("ErrImagePull", "ImagePullBackOff"))
    kubectl.wait("image back-off", lambda: reason("no-image") == "ImagePullBackOff")
    kubectl.wait("secret missed", lambda: reason("no-secret") == "CreateContainerConfigError")
    waiting = main_state(kubectl.get("pod", "no-secret"))["waiting"]
    assert waiting["message"] == 'secret "late" not found'
    kubectl.wait("explicit error", lambda: "no storage driver" in kubectl.run("describe", "pod", "claims"))
    kubectl.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late"}, "stringData": {"a": "now"}})
    kubectl.wait_phase("no-secret", "Succeeded")
    assert kubectl.run("logs", "no-secret") == "now\n"
    kubectl.delete_pods("no-image", "no-secret", "claims")


def test_restarts_back_off_and_keep_the_previous_log(kubectl: Kubectl) -> None:
    kubectl.apply(
        shell_pod("crashes", "echo run; exit 1", restartPolicy="Always"),
        shell_pod(
            "recovers",
            "if [ -e /state/once ]; then exit 0; fi; touch /state/once; exit 1",
            restartPolicy="OnFailure",
            container={"volumeMounts": [{"name": "state", "mountPath": "/state"}]},
            volumes=[{"name": "state", "emptyDir": {}}],
        ),
    )
    recovered = kubectl.wait_phase("recovers", "Succeeded")
    assert recovered["status"]["containerStatuses"][0]["restartCount"] == 1
    assert recovered["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1

    def backing_off() -> Json | None:
        pod = kubectl.get("pod", "crashes")
        return pod if main_state(pod).get("waiting", {}).get("reason") == "CrashLoopBackOff" else None

    pod = kubectl.wait("CrashLoopBackOff", backing_off)
    assert pod["status"]["phase"] == "Running"
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 1
    assert kubectl.run("logs", "crashes", "--previous") == "run\n"
    kubectl.run("delete", "pod", "crashes", "recovers")


def test_init_containers_run_in_order_before_the_others(kubectl: Kubectl) -> None:
    mount = [{"name": "d", "mountPath": "/d"}]

    def init(name: str, script: str, **more: Any) -> Json:
        return {"name": name, "image": "busybox", "command": ["sh", "-c", script], "volumeMounts": mount, **more}

    kubectl.apply(
        shell_pod(
            "ordered",
            "cat /d/log",
            container={"volumeMounts": mount},
            initContainers=[
                init("one", "echo one >> /d/log"),
                init("sidecar", "echo side >> /d/log; exec sleep 600", restartPolicy="Always"),
                init("two", "sleep 0.3; echo two >> /d/log"),
            ],
            volumes=[{"name": "d", "emptyDir": {}}],
        ),
        shell_pod(
            "init-fails", "true", initContainers=[init("bad", "exit 4")], volumes=[{"name": "d", "emptyDir": {}}]
        ),
    )
    kubectl.wait_phase("ordered", "Succeeded")
    assert kubectl.run("logs", "ordered", "-c", "main").split() == ["one", "side", "two"]
    failed = kubectl.wait_phase("init-fails", "Failed")
    assert failed["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 4
    assert "waiting" in main_state(failed)


def test_probes_gate_readiness_and_restart_the_dead(kubectl: Kubectl) -> None:
    server = "import http.server,os; http.server.test(http.server.SimpleHTTPRequestHandler, bind=os.environ['IP'])"
    kubectl.apply(
        shell_pod(
            "probed",
            "",
            container={
                "image": "python:3",
                "command": ["python", "-c", server],
                "env": [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "ports": [{"name": "http", "containerPort": 8000}],
                "startupProbe": {"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 20},
                "readinessProbe": {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1},
            },
        ),
        shell_pod(
            "unready", "sleep 60", container={"readinessProbe": {"exec": {"command": ["false"]}, "periodSeconds": 1}}
        ),
        shell_pod(
            "dies",
            "sleep 60",
            restartPolicy="Always",
            container={
                "livenessProbe": {
                    "exec": {"command": ["false"]},
                    "periodSeconds": 1,
                    "failureThreshold": 1,
                    "terminationGracePeriodSeconds": 1,
                }
            },
        ),
    )
    kubectl.run("wait", "--for=condition=Ready", "pod/probed", "--timeout=20s")
    kubectl.wait(
        "liveness restart", lambda: kubectl.get("pod", "dies")["status"]["containerStatuses"][0]["restartCount"] >= 1
    )
    unready = kubectl.get("pod", "unready")
    assert unready["status"]["phase"] == "Running"
    assert unready["status"]["containerStatuses"][0]["ready"] is False
    kubectl.delete_pods("probed", "unready", "dies")


def test_over_its_memory_limit_a_container_is_oom_killed(kubectl: Kubectl) -> None:
    hog = "import time\nheld = bytearray(b'x' * (200 << 20))\ntime.sleep(60)"
    kubectl.apply(
        shell_pod(
            "hog",
            "",
            container={
                "image": "python:3",
                "command": ["python", "-c", hog],
                "resources": {"limits": {"memory": "100Mi"}},
            },
        )
    )
    ended = main_state(kubectl.wait_phase("hog", "Failed"))["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)


def test_deletion_gives_the_grace_and_then_kills_the_whole_tree(cluster: Cluster, kubectl: Kubectl) -> None:
    kubectl.apply(
        shell_pod("polite", "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.1; done"),
        shell_pod("stubborn", "trap '' TERM; (sh -c 'trap \"\" TERM; sleep 4321') & while true; do sleep 0.2; done"),
    )
    for name in ("polite", "stubborn"):
        kubectl.run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=20s")
    kubectl.wait("handler installed", lambda: "up" in kubectl.run("logs", "polite"))
    follow = subprocess.Popen(
        ["kubectl", "--kubeconfig", str(kubectl.kubeconfig), "logs", "-f", "polite"], stdout=subprocess.PIPE, text=True
    )
    assert follow.stdout is not None
    assert follow.stdout.readline() == "up\n"
    kubectl.run("delete", "pod", "polite", "stubborn", "--timeout=20s")
    output, _ = follow.communicate(timeout=20)
    assert output == "bye\n"
    left = subprocess.run(["pgrep", "-f", "sleep 4321"], capture_output=True, text=True, check=False).stdout
    assert left == ""


def test_a_deadline_ends_a_pod(kubectl: Kubectl) -> None:
    kubectl.apply(shell_pod("late", "sleep 60", activeDeadlineSeconds=1))
    ended = kubectl.wait_phase("late", "Failed")
    assert ended["status"]["reason"] == "DeadlineExceeded"
