"""Dependents follow their owners as propagation policies say."""

from typing import Any

from local_cluster_tools import Kubectl, shell_pod

Json = dict[str, Any]


def _config(name: str, owner: Json | None = None, **reference: Any) -> Json:
    metadata: Json = {"name": name}
    if owner is not None:
        metadata["ownerReferences"] = [
            {
                "apiVersion": "v1",
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
                **reference,
            }
        ]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}


def _family(kubectl: Kubectl, name: str) -> None:
    """An owner, a ConfigMap and a running pod of its, and a grandchild."""
    kubectl.apply(_config(name))
    owner = kubectl.get("configmap", name)
    pod = shell_pod(f"{name}-pod", "sleep 300")
    pod["metadata"]["ownerReferences"] = _config("", owner, blockOwnerDeletion=True, controller=True)["metadata"][
        "ownerReferences"
    ]
    kubectl.apply(_config(f"{name}-child", owner), pod)
    kubectl.apply(_config(f"{name}-grandchild", kubectl.get("configmap", f"{name}-child")))
    kubectl.wait_phase(f"{name}-pod", "Running")


def test_background_deletion_removes_dependents_after_the_owner(kubectl: Kubectl) -> None:
    _family(kubectl, "background")
    kubectl.run("delete", "configmap", "background")
    for kind, name in (("configmap", "child"), ("configmap", "grandchild"), ("pod", "pod")):
        kubectl.wait(f"{name} goes", lambda kind=kind, name=name: not kubectl.exists(kind, f"background-{name}"))


def test_foreground_deletion_waits_for_blocking_dependents(kubectl: Kubectl) -> None:
    _family(kubectl, "foreground")
    kubectl.run("delete", "configmap", "foreground", "--cascade=foreground", "--timeout=30s")
    assert not kubectl.exists("pod", "foreground-pod"), "the owner goes last"


def test_orphaned_dependents_stay_without_the_reference(kubectl: Kubectl) -> None:
    _family(kubectl, "orphaning")
    kubectl.run("delete", "configmap", "orphaning", "--cascade=orphan", "--timeout=30s")
    child = kubectl.get("configmap", "orphaning-child")
    assert not child["metadata"].get("ownerReferences")
    assert kubectl.get("pod", "orphaning-pod")["status"]["phase"] == "Running"
    kubectl.run("delete", "configmap", "orphaning-child")
    kubectl.run("delete", "pod", "orphaning-pod")


def test_an_owner_that_never_was_takes_its_dependent_but_a_second_owner_keeps_it(kubectl: Kubectl) -> None:
    kubectl.apply(_config("real-owner"))
    ghost = {"kind": "ConfigMap", "metadata": {"name": "ghost", "uid": "11111111-2222-3333-4444-555555555555"}}
    kept = _config("kept", ghost)
    kept["metadata"]["ownerReferences"] += _config("", kubectl.get("configmap", "real-owner"))["metadata"][
        "ownerReferences"
    ]
    kubectl.apply(_config("lost", ghost), kept)
    kubectl.wait("the orphan goes", lambda: not kubectl.exists("configmap", "lost"))

    def owners() -> list[str]:
        references = kubectl.get("configmap", "kept")["metadata"]["ownerReferences"]
        return [item["name"] for item in references]

    kubectl.wait("the dangling reference goes", lambda: owners() == ["real-owner"])
    kubectl.run("delete", "configmap", "real-owner")
    kubectl.wait("it follows its last owner", lambda: not kubectl.exists("configmap", "kept"))


def test_custom_resources_own_objects_too(kubectl: Kubectl) -> None:
    kubectl.apply(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": "boats.example.com"},
            "spec": {
                "group": "example.com",
                "names": {"kind": "Boat", "plural": "boats"},
                "scope": "Namespaced",
                "versions": [
                    {
                        "name": "v1",
                        "served": True,
                        "storage": True,
                        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
                    }
                ],
            },
        }
    )
    kubectl.run("wait", "--for=condition=Established", "crd/boats.example.com", "--timeout=20s")
    kubectl.apply({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "argo"}})
    boat = kubectl.get("boats.example.com", "argo")
    rower = _config("rower", boat)
    rower["metadata"]["ownerReferences"][0]["apiVersion"] = "example.com/v1"
    kubectl.apply(rower)
    ghost = _config("ghost-rower", boat)
    ghost["metadata"]["ownerReferences"][0] |= {"apiVersion": "example.com/v9", "kind": "Galley", "uid": "9-9-9"}
    kubectl.apply(ghost)
    kubectl.run("delete", "boats.example.com", "argo")
    # A real garbage collector looks for new kinds every 30 s.
    kubectl.wait("the rower goes", lambda: not kubectl.exists("configmap", "rower"), 90)
    kubectl.apply({"apiVersion": "example.com/v1", "kind": "Boat", "metadata": {"name": "argo"}})
    rower["metadata"]["ownerReferences"][0]["uid"] = kubectl.get("boats.example.com", "argo")["metadata"]["uid"]
    kubectl.apply(rower)
    kubectl.run("delete", "crd", "boats.example.com")
    kubectl.wait("the rower goes with the whole kind", lambda: not kubectl.exists("configmap", "rower"), 90)
    assert kubectl.exists("configmap", "ghost-rower"), "an owner of a kind that nobody serves is no reason to delete"
    kubectl.run("delete", "configmap", "ghost-rower")


def test_a_namespace_is_emptied_before_it_goes(kubectl: Kubectl) -> None:
    kubectl.run("create", "namespace", "doomed")
    kubectl.wait("default account", lambda: kubectl.exists("serviceaccount", "default", "-n", "doomed"))
    pod = shell_pod("inside", "sleep 300")
    pod["metadata"]["namespace"] = "doomed"
    kubectl.apply(pod)
    kubectl.wait("running", lambda: kubectl.get("pod", "inside", "-n", "doomed")["status"].get("phase") == "Running")
    kubectl.run("delete", "namespace", "doomed", "--timeout=55s")
    assert not kubectl.exists("pod", "inside", "-n", "doomed")


def test_a_service_says_that_it_can_list_no_pod_with_a_loopback_address(kubectl: Kubectl) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"clusterIP": "None", "selector": {"test": "web-1"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }
    kubectl.apply(service, shell_pod("web-1", "sleep 300"))
    kubectl.wait_phase("web-1", "Running")
    selector = "involvedObject.kind=Service,involvedObject.name=web,reason=FailedToUpdateEndpointSlices"

    def said() -> str:
        return kubectl.run("get", "events", "--field-selector", selector, "-o", "jsonpath={.items[*].message}")

    kubectl.wait("said", lambda: "may not be in the loopback range" in said())
    options = ["-l", "kubernetes.io/service-name=web", "-o", "jsonpath={.items[*].endpoints[*].addresses[0]}"]
    assert kubectl.run("get", "endpointslices", *options) == ""
    kubectl.run("delete", "pod", "web-1")
    kubectl.run("delete", "service", "web")
