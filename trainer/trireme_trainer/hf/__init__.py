"""Training with Hugging Face's trainers under an agent: what they do not have, or have in pickles."""
