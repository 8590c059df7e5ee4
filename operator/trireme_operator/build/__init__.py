"""The objects that a job consists of in the cluster, as manifests."""

from trireme_operator.build.names import Names
from trireme_operator.build.objects import agent_secret, agent_token, config_map, service
from trireme_operator.build.pods import pod

__all__ = ["Names", "agent_secret", "agent_token", "config_map", "pod", "service"]
