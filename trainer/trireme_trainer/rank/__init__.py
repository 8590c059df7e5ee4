"""What a rank of every program does beside its own steps: agree, save, restore, report, and tell how it ended."""
