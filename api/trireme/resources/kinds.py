"""What a kind of resource is to the rest of the code. Operator, trainer and CLI ask here and never which kind it is."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from trireme.resources.common import TrainingJobSpec
from trireme.resources.references import References, no_references
from trireme.resources.schema import Schema, structural_schema

GROUP = "trireme.dev"
VERSION = "v1alpha1"

SpecT = TypeVar("SpecT", bound=BaseModel)
JobSpecT = TypeVar("JobSpecT", bound=TrainingJobSpec)


class SpecError(ValueError):
    """A spec that its model refuses: the field (dotted, from the spec's root) and why, of the first problem."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field
        self.message = message


@dataclass(frozen=True)
class PrintColumn:
    """A column of `kubectl get`; priority 1 columns are shown with -o wide."""

    name: str
    type: Literal["string", "integer", "number", "date"]
    json_path: str
    description: str
    priority: int = 0


@dataclass(frozen=True)
class SpecRule:
    """A CEL rule of a schema node, named by the dotted path of its node from the spec ('' is the spec)."""

    path: str
    rule: str
    message: str


@dataclass(frozen=True)
class Choice:
    """A field that was left out, the value that was chosen for it, and the rule that chose it."""

    field: str
    value: str
    rule: str


@dataclass(frozen=True)
class ConfigMapFile:
    """A key of a ConfigMap of the job's namespace that its pods find as a file under this name."""

    name: str
    config_map: str
    key: str


def _no_files(_: Any) -> tuple[ConfigMapFile, ...]:
    return ()


def _nothing_to_settle(spec: Any) -> tuple[Any, tuple[Choice, ...]]:
    return spec, ()


@dataclass(frozen=True)
class Scale:
    """The scale subresource: where the API server reads and writes a number of replicas, as JSON paths."""

    spec_replicas: str
    status_replicas: str
    label_selector: str


@dataclass(frozen=True, kw_only=True)
class KindInfo(Generic[SpecT]):
    """What every kind has."""

    kind: str
    plural: str
    singular: str
    short_names: tuple[str, ...]
    description: str
    spec_model: type[SpecT]
    status_model: type[BaseModel]
    print_columns: tuple[PrintColumn, ...]
    mutable_paths: tuple[str, ...]
    """Dotted paths, from the spec, of what steers a job that was accepted."""
    rules: tuple[SpecRule, ...]
    model_name: Callable[[SpecT], str]
    """What a spec is about, for people: a preset, a job as Kind/name, or a URI."""
    references: Callable[[SpecT], References] = no_references
    """The jobs whose models a spec asks for."""
    scale: Scale | None = None
    """The scale subresource, of a kind that has one."""

    @property
    def api_version(self) -> str:
        """apiVersion of a manifest."""
        return f"{GROUP}/{VERSION}"

    @cached_property
    def immutable_paths(self) -> tuple[str, ...]:
        """Dotted paths, from the spec, of what never changes once a job was accepted: all that is not mutable."""
        return tuple(_immutable(structural_schema(self.spec_model), self.mutable_paths))

    def parse(self, spec: Mapping[str, Any]) -> SpecT:
        """A raw spec as its model, defaults filled in. Raises SpecError."""
        try:
            return self.spec_model.model_validate(spec)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(part) for part in first["loc"])
            more = error.error_count() - 1
            message = first["msg"].removeprefix("Value error, ")
            raise SpecError(field, message + (f" (and {more} more)" if more else "")) from error

    def parse_stored(self, spec: Mapping[str, Any]) -> SpecT:
        """A spec that was accepted once, perhaps by a newer version: unknown fields are ignored. Raises SpecError."""
        try:
            return self.spec_model.model_validate(spec)
        except ValidationError as error:
            unknown = [e["loc"] for e in error.errors(include_url=False) if e["type"] == "extra_forbidden"]
        known = copy.deepcopy(dict(spec))
        for *path, last in unknown:
            inner: Any = known
            try:
                for part in path:
                    inner = inner[part]
                del inner[last]
            except (KeyError, IndexError, TypeError):  # not a path in the spec: what is wrong is said below
                continue
        return self.parse(known)

    def with_live_fields(self, frozen: SpecT, live: SpecT) -> SpecT:
        """The spec of an accepted job: what is mutable as it stands now, all else as it was when it was accepted."""
        return _replaced(frozen, live, [path.split(".") for path in self.mutable_paths])


@dataclass(frozen=True, kw_only=True)
class JobKind(KindInfo[JobSpecT]):
    """One kind of training job: what it has beside."""

    program: str
    """Which trainer program the ranks run."""
    make_plan: Callable[[JobSpecT], BaseModel]
    """How the work of a settled spec is divided over the ranks. Raises trireme.planning.PlanError."""
    config_map_files: Callable[[JobSpecT], tuple[ConfigMapFile, ...]] = _no_files
    """Files that a spec asks for in its pods beside the job's own."""
    settle: Callable[[JobSpecT], tuple[JobSpecT, tuple[Choice, ...]]] = _nothing_to_settle
    """A spec with what was left out filled in where that depends on other fields, and the rules that chose it."""


ModelT = TypeVar("ModelT", bound=BaseModel)


def _replaced(model: ModelT, other: ModelT, paths: Iterable[list[str]]) -> ModelT:
    """`model` with the fields of `other` at these paths, which are in manifest form."""
    names = {field.alias or name: name for name, field in type(model).model_fields.items()}
    below: dict[str, list[list[str]]] = {}
    for first, *rest in paths:
        below.setdefault(names[first], []).append(rest)
    update = {}
    for name, rests in below.items():
        here, there = getattr(model, name), getattr(other, name)
        update[name] = there if [] in rests else _replaced(here, there, rests)
    return model.model_copy(update=update)


def _immutable(schema: Schema, mutable: tuple[str, ...], parent: str = "") -> Iterator[str]:
    """The paths below a node. Parts of the spec are divided into their fields, so that a refusal names the field."""
    for name, child in schema["properties"].items():
        path = f"{parent}{name}"
        if path in mutable:
            continue
        if "properties" in child and (not parent or any(m.startswith(f"{path}.") for m in mutable)):
            yield from _immutable(child, mutable, f"{path}.")
        else:
            yield path


def all_kinds() -> tuple[KindInfo[Any], ...]:
    """Every kind that can be served."""
    from trireme.resources.finetune import FINETUNE_JOB
    from trireme.resources.inference import INFERENCE_SERVICE
    from trireme.resources.pretrain import PRETRAIN_JOB
    from trireme.resources.rlhf import RLHF_JOB

    return (PRETRAIN_JOB, FINETUNE_JOB, RLHF_JOB, INFERENCE_SERVICE)


def job_kinds() -> tuple[JobKind[Any], ...]:
    """Every kind of training job."""
    return tuple(info for info in all_kinds() if isinstance(info, JobKind))


def job_kind_named(name: str) -> JobKind[Any]:
    """The kind of training job with this name, as `kind_named`. Raises KeyError."""
    info = kind_named(name)
    if not isinstance(info, JobKind):
        raise KeyError(f"{info.kind} is no kind of training job; known: {', '.join(i.kind for i in job_kinds())}")
    return info


def kind_named(name: str) -> KindInfo[Any]:
    """The kind with this name, plural, singular or short name, whatever the case. Raises KeyError."""
    wanted = name.lower()
    for info in all_kinds():
        if wanted in {info.kind.lower(), info.plural, info.singular, *info.short_names}:
            return info
    raise KeyError(f"no kind {name!r}; known: {', '.join(info.kind for info in all_kinds())}")
