"""The object store and verified copies of what lies there: shared by what trains and what serves."""
