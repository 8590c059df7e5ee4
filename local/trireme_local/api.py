"""The few questions that the cluster's commands ask its API server."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from trireme.loopback import is_loopback
from trireme_local.errors import ClusterError

TIMEOUT_SECONDS = 5


def load_configuration(kubeconfig: Path | None) -> client.Configuration:
    """The official client's configuration from a kubeconfig; None means ~/.kube/config. Raises ConfigException.

    A proxy of the environment counts, but not for an API server on this computer; one that the kubeconfig names
    always does.
    """
    configuration = client.Configuration(proxy="")
    config.load_kube_config(config_file=str(kubeconfig) if kubeconfig else None, client_configuration=configuration)
    if not configuration.proxy and not is_loopback(configuration.host):
        proxies = getproxies()
        configuration.proxy = proxies.get(urlsplit(configuration.host).scheme) or proxies.get("all")
    return configuration


class ClusterApi:
    """The official client on one kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        configuration = load_configuration(kubeconfig)
        configuration.retries = False
        self._core = client.CoreV1Api(client.ApiClient(configuration))

    def is_ready(self) -> bool:
        """Whether the API server says of itself that it is ready."""
        api = self._core.api_client
        request = api.param_serialize("GET", "/readyz", auth_settings=["BearerToken"])
        try:
            return bool(api.call_api(*request, _request_timeout=TIMEOUT_SECONDS).status == 200)
        except (HTTPError, OSError):
            return False

    def has_default_account(self) -> bool:
        """Whether pods are admitted to namespace `default`: a controller makes the account that they need."""
        try:
            self._core.read_namespaced_service_account("default", "default", _request_timeout=TIMEOUT_SECONDS)
        except (client.ApiException, HTTPError, OSError):
            return False
        return True

    def node_readiness(self) -> dict[str, str]:
        """Node -> status of its Ready condition. Raises `ClusterError` when the API server does not answer."""
        try:
            nodes = self._core.list_node(_request_timeout=TIMEOUT_SECONDS).items
        except (client.ApiException, HTTPError, OSError) as error:
            raise ClusterError(f"the API server does not answer: {error}") from error
        return {
            node.metadata.name: next(
                (item.status for item in node.status.conditions or [] if item.type == "Ready"), "Unknown"
            )
            for node in nodes
        }

    def write_secret(self, namespace: str, name: str, entries: dict[str, str]) -> None:
        """Create or replace a Secret. Raises `ClusterError`."""
        secret = client.V1Secret(metadata=client.V1ObjectMeta(name=name), string_data=entries, type="Opaque")
        try:
            try:
                self._core.create_namespaced_secret(namespace, secret, _request_timeout=TIMEOUT_SECONDS)
            except client.ApiException as error:
                if error.status != 409:
                    raise
                self._core.replace_namespaced_secret(name, namespace, secret, _request_timeout=TIMEOUT_SECONDS)
        except (client.ApiException, HTTPError, OSError) as error:
            raise ClusterError(f"Secret {namespace}/{name} not written: {error}") from error
