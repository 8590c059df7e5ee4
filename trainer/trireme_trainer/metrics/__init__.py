"""Numbers for Prometheus and for the job's status."""
