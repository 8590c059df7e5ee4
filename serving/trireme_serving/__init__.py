"""What runs in an inference pod: brings the model there, checks it, starts vLLM and watches it."""
