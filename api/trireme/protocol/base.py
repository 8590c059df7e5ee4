"""The base of every wire model: camelCase on the wire, snake_case in Python."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

METRICS_PORT = 9464
"""Port of /metrics in every pod of a job or service, named `metrics`."""


class WireModel(BaseModel):
    """A message or stored document.

    Unknown fields are ignored: a newer peer may add fields within one major version of the protocol.
    """

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)

    def to_json(self) -> str:
        """The canonical JSON text of this document: camelCase names, absent fields left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True)
