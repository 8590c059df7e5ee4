"""What the pod tells the program: the environment, and a file that is mounted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trireme.protocol.serving import AdapterList, ServingConfig


@dataclass(frozen=True)
class Settings:
    """One replica."""

    config: ServingConfig
    adapters_file: Path
    cache: Path
    scratch: Path
    address: str

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Raises KeyError for a variable that is missing, pydantic.ValidationError for a bad one."""
        return cls(
            config=ServingConfig.model_validate_json(environ["TRIREME_SERVICE"]),
            adapters_file=Path(environ["TRIREME_ADAPTERS_FILE"]),
            cache=Path(environ["TRIREME_MODEL_CACHE"]),
            scratch=Path(environ["TRIREME_SCRATCH"]),
            address=environ["POD_IP"],
        )

    def wanted_adapters(self) -> AdapterList:
        """The adapters as they are wanted now. Raises OSError, pydantic.ValidationError."""
        return AdapterList.model_validate_json(self.adapters_file.read_text())
