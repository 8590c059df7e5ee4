"""Data: sources, tokenizer, packed token files, and the order in which samples are read."""
