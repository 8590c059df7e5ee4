"""A worker node: registers itself with an API server and runs pods as local processes."""
