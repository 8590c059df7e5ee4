"""Carrying decisions out: writes to the API server and to agents, each idempotent and with a precondition."""
