"""Rewards of an RLHFJob: what a completion is worth."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trireme.resources.base import ObjectName, Quantity, RawObject, Strict
from trireme.resources.kinds import SpecRule
from trireme.resources.tuning import ModelSource

REWARD_TYPES = ("model", "regex", "jsonSchema", "pythonSyntax", "length", "function")


class RegexReward(Strict):
    """1 where a pattern matches the completion, 0 elsewhere."""

    pattern: str = Field(min_length=1, max_length=4096, description="Pattern in the syntax of Python's re module.")
    match: Literal["search", "full"] = Field(
        default="search", description="search: anywhere in the completion. full: the completion from end to end."
    )


class JsonSchemaReward(Strict):
    """1 where the completion is JSON that a schema accepts, 0 elsewhere."""

    definition: RawObject = Field(
        alias="schema", description="JSON Schema, draft 2020-12; {} accepts every valid JSON. No remote references."
    )


class PythonSyntaxReward(Strict):
    """1 where the completion is Python that compiles, 0 elsewhere; nothing is run."""


class LengthReward(Strict):
    """How well the number of the completion's tokens fits: a target, or a range."""

    target: int | None = Field(
        default=None,
        ge=1,
        le=1_048_576,
        description="Tokens that score 1; others lose in proportion to the distance, down to 0 at twice the target.",
    )
    min: int | None = Field(default=None, ge=1, le=1_048_576, description="Fewest tokens that score 1; fewer score 0.")
    max: int | None = Field(default=None, ge=1, le=1_048_576, description="Most tokens that score 1; more score 0.")

    @model_validator(mode="after")
    def _target_or_range(self) -> "LengthReward":
        if (self.target is None) == (self.min is None and self.max is None):
            raise ValueError("either target, or min and max or one of them, must be set")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} exceeds max {self.max}")
        return self


class ConfigMapKey(Strict):
    """A key of a ConfigMap of the job's own namespace."""

    name: ObjectName = Field(description="Name of the ConfigMap.")
    key: str = Field(
        default="reward.py",
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key whose value is Python source.",
    )


class FunctionReward(Strict):
    """Your own Python: reward(prompts, completions, **fields) gives one number for each completion.

    Every argument is a list with an entry for each completion; fields are the other fields of the data's lines. It runs
    in a process of its own.
    """

    config_map: ConfigMapKey = Field(description="Where the source is.")
    timeout_seconds: float = Field(
        default=60, gt=0, le=3600, description="Time of one call, the whole batch of a rank. Longer fails the job."
    )
    memory: Quantity = Field(default="1Gi", description="Memory that its process may have. More fails the job.")


class Reward(Strict):
    """One part of a completion's reward: exactly one of model, regex, jsonSchema, pythonSyntax, length and function."""

    name: str = Field(
        min_length=1,
        max_length=63,
        pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$",
        description="Name; its mean is reported under it.",
    )
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Factor of this part in the sum.")
    model: ModelSource | None = Field(
        default=None, description="A reward model: its score of prompt and completion, an empty completion's too."
    )
    regex: RegexReward | None = Field(default=None, description="1 where a pattern matches, 0 elsewhere.")
    json_schema: JsonSchemaReward | None = Field(
        default=None, description="1 where the completion is JSON that a schema accepts, 0 elsewhere."
    )
    python_syntax: PythonSyntaxReward | None = Field(
        default=None, description="1 where the completion is Python that compiles, 0 elsewhere."
    )
    length: LengthReward | None = Field(default=None, description="How well the number of tokens fits.")
    function: FunctionReward | None = Field(
        default=None, description="Your own Python, in a process of its own with limits of time and memory."
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "Reward":
        parts = (self.model, self.regex, self.json_schema, self.python_syntax, self.length, self.function)
        if sum(part is not None for part in parts) != 1:
            raise ValueError(f"reward {self.name}: exactly one of {_either()} must be set")
        return self


Rewards = Annotated[
    list[Reward],
    Field(
        min_length=1,
        max_length=8,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


def _either() -> str:
    return f"{', '.join(REWARD_TYPES[:-1])} and {REWARD_TYPES[-1]}"


_HAS = ", ".join(f"has(r.{name})" for name in REWARD_TYPES)

REWARD_RULES = (
    SpecRule("rewards", f"self.all(r, [{_HAS}].filter(t, t).size() == 1)", f"exactly one of {_either()} must be set"),
    SpecRule(
        "rewards",
        "self.all(r, !has(r.model) || has(r.model.job) != has(r.model.uri))",
        "exactly one of job and uri must be set",
    ),
    SpecRule(
        "rewards",
        "self.all(r, !has(r.length) || has(r.length.target) != (has(r.length.min) || has(r.length.max)))",
        "either target, or min and max or one of them, must be set",
    ),
)
