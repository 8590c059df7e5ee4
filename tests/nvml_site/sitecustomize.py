"""Imported by every Python that has this folder in PYTHONPATH: recorded devices for an agent in another process."""

import os
import sys
from pathlib import Path

if recording := os.environ.get("FAKE_NVML_RECORDING"):
    sys.path.append(str(Path(__file__).parents[1]))
    import fake_nvml

    fake_nvml.install(Path(recording))
