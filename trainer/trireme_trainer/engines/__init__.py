"""Training engines: one interface, chosen by the plan."""
