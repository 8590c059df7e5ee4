"""InferenceServices: what is seen of them, what is decided (pure), what is built and applied."""
