"""Seeing: caches fed by watches and lists, polls of agents, and the one queue of jobs to look at."""
