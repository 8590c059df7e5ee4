"""Grafana dashboards and Prometheus alerts, made from the definitions of the metrics that they show.

`python -m trireme_monitoring charts/trireme/files` writes what the Helm chart ships. Nothing else needs this package:
it is in no image and no wheel.
"""
