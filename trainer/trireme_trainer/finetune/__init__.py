"""FineTuneJob's own part: the base model, the method, examples, and the trainer of trl under an agent."""
