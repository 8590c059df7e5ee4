"""The control loops of a small cluster, each a plain API client."""
