"""Errors of the local cluster's commands."""


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked; the message says why."""
