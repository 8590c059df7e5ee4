"""Model shape -> memory -> legal layouts -> the plan. Pure arithmetic; every formula carries its source."""

from trireme.planning.planner import plan
from trireme.planning.types import DeviceMemory, Plan, PlanError, PlanRequest

__all__ = ["DeviceMemory", "Plan", "PlanError", "PlanRequest", "plan"]
