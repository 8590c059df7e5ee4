"""The service proxy: makes the cluster IPs of Services reachable from this computer and from its pods."""
