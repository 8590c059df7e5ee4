"""The dashboards, a module each."""

from trireme_monitoring.board import Board
from trireme_monitoring.dashboards.checkpoints import checkpoints
from trireme_monitoring.dashboards.fleet import fleet
from trireme_monitoring.dashboards.inference import inference
from trireme_monitoring.dashboards.job import job
from trireme_monitoring.dashboards.operator import operator_board
from trireme_monitoring.dashboards.rlhf import rlhf


def all_boards() -> list[Board]:
    """Every dashboard that the chart ships."""
    return [fleet(), job(), checkpoints(), rlhf(), inference(), operator_board()]


__all__ = ["all_boards"]
