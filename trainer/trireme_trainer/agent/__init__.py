"""The agent: one per pod; starts the ranks, watches them, commits their checkpoints, reports to the operator."""
