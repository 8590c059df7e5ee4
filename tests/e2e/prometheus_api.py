"""A Prometheus as its users ask it: over its HTTP API."""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
STEP_SECONDS = 5


@dataclass(frozen=True)
class Prometheus:
    """One server."""

    url: str

    def get(self, path: str, **parameters: str | float) -> Any:
        """`data` of an answer. Raises AssertionError with what Prometheus says of a query that it refuses."""
        query = urllib.parse.urlencode(parameters)
        try:
            with _DIRECT.open(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def has_data(self, expr: str, start: float, end: float) -> bool:
        """Whether a query had a number at some time."""
        found = self.get("query_range", query=expr, start=start, end=end, step=STEP_SECONDS)["result"]
        return any(not math.isnan(float(value)) for series in found for _, value in series["values"])

    def labels(self, selector: str, start: float, end: float) -> list[set[str]]:
        """Labels of each series that a selector finds."""
        found = self.get("series", **{"match[]": selector, "start": start, "end": end})
        return [set(series) for series in found]

    def value(self, expr: str) -> float | None:
        """A number now; None where there is no series."""
        found = self.get("query", query=expr)["result"]
        return float(found[0]["value"][1]) if found else None

    def firing(self, alert: str, **labels: str) -> list[dict[str, str]]:
        """Labels of an alert's firing instances that have these labels."""
        found = (a["labels"] for a in self.get("alerts")["alerts"] if a["state"] == "firing")
        return [of for of in found if of["alertname"] == alert and labels.items() <= of.items()]
