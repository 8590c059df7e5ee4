"""The pretraining program: what slot 0 prepares and what every rank runs."""
