"""A small Kubernetes API server: the public API surface of a cluster, on one computer, in one process."""
