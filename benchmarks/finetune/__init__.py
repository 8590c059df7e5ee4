"""Losses and tokens per second of a fine-tuning job, beside the script that one writes by hand over trl and peft."""
