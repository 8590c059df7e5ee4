"""InferenceServices: are they ready, how fast do they answer, how full are they."""

from trireme.metrics import Metric
from trireme_monitoring import engine
from trireme_monitoring.board import Board, Column, Panel, Query, lines, number, rows
from trireme_monitoring.dashboards.variables import MODELS, NAMESPACE_OF_SERVICES, SERVICES_OF_MODELS
from trireme_monitoring.promql import SERVICE, by, mean, one, or_zero, quantile, rate, shown
from trireme_operator import metrics as operator
from trireme_serving import metrics as serving

NAME = "{{namespace}}/{{service_name}}"
REPLICA = "{{service_name}} {{instance}}"
OF_SERVICE = ("namespace", "service_name")


def inference() -> Board:
    """The dashboard."""
    board = Board(
        "inference",
        "Trireme / Inference",
        "Services and their replicas: readiness, starts, adapters, load, latency and the KV cache of vLLM.",
        [NAMESPACE_OF_SERVICES, MODELS, SERVICES_OF_MODELS],
    )
    board.row("Now", *_now(), across=6)
    board.row("Each service", _table(), across=1)
    board.row("Latency", *_latency(), across=4)
    board.row("Load", *_load())
    board.row("Replicas", *_replicas())
    return board


def _sum(metric: Metric, *labels: str) -> str:
    return by("sum", (*OF_SERVICE, *labels), shown(metric))


def _rate(metric: Metric, *labels: str) -> str:
    return by("sum", (*OF_SERVICE, *labels), rate(metric))


def _now() -> list[Panel]:
    wanted, ready = f"sum({one(operator.SERVICE_WANTED)})", f"sum({one(operator.SERVICE_READY)})"
    return [
        number("Replicas wanted", "By the manifests.", "none", Query(wanted)),
        number("Replicas ready", "That services lead to.", "none", Query(ready)),
        number("Missing", "Wanted and not ready.", "none", Query(f"clamp_min({wanted} - {ready}, 0)"), bad_from=1),
        number("Running", "Requests that are being answered.", "none", Query(f"sum({shown(engine.RUNNING)})")),
        number("Waiting", "Requests that wait in vLLM.", "none", Query(f"sum({shown(engine.WAITING)})")),
        number(
            "Tokens of answers per second",
            "Over the time range.",
            "short",
            Query(by("sum", "", rate(engine.GENERATED_TOKENS, window="$__range"))),
        ),
    ]


def _table() -> Panel:
    labels = {
        "namespace": "Namespace",
        "service_name": "Service",
        "state": "State",
        "model": "Model",
        "image": "Image",
    }
    columns = [
        Column("State", one(operator.SERVICE_STATE, "state"), hidden=True),
        Column("Info", one(operator.SERVICE_INFO, "model", "image"), hidden=True),
        Column("Wanted", one(operator.SERVICE_WANTED)),
        Column("Ready", one(operator.SERVICE_READY)),
    ]
    return rows("Services", "A line for each service.", labels, *columns)


def _quantiles(title: str, about: str, metric: Metric) -> Panel:
    queries = [Query(quantile(share, metric, *OF_SERVICE), f"{NAME} {share:.0%}") for share in (0.5, 0.95, 0.99)]
    return lines(title, about, "s", *queries, Query(mean(metric, *OF_SERVICE), f"{NAME} mean"))


def _latency() -> list[Panel]:
    return [
        _quantiles("Time to first token", "From a request's arrival to its first token.", engine.FIRST_TOKEN),
        _quantiles("Between tokens", "From token to token of an answer.", engine.BETWEEN_TOKENS),
        _quantiles("Whole request", "From a request's arrival to its last token.", engine.WHOLE_REQUEST),
        _quantiles("Queue", "Time that requests waited in vLLM before their prompts were read.", engine.QUEUE),
    ]


def _load() -> list[Panel]:
    hits = f"{_rate(engine.PREFIX_HITS)} / {_rate(engine.PREFIX_QUERIES)}"
    return [
        lines(
            "Requests",
            "Requests that are being answered, and those that wait: where these grow, replicas are missing.",
            "none",
            Query(_sum(engine.RUNNING), f"{NAME} running"),
            Query(_sum(engine.WAITING), f"{NAME} waiting"),
        ),
        lines(
            "Answers per second",
            "By why they ended: stop, length (the limit of tokens), abort (the client left).",
            "reqps",
            Query(_rate(engine.SUCCESS, "finished_reason"), f"{NAME} {{{{finished_reason}}}}"),
            stacked=True,
        ),
        lines(
            "Tokens per second",
            "Of prompts and of answers.",
            "short",
            Query(_rate(engine.PROMPT_TOKENS), f"{NAME} prompts"),
            Query(_rate(engine.GENERATED_TOKENS), f"{NAME} answers"),
        ),
        lines(
            "KV cache",
            "Share in use, of the fullest replica. Near 1 requests wait or are put back.",
            "percentunit",
            Query(by("max", OF_SERVICE, shown(engine.CACHE_USE)), NAME),
            top=1,
        ),
        lines(
            "Put back",
            "Requests per second that were put back because the KV cache was full.",
            "reqps",
            Query(_rate(engine.PREEMPTIONS), NAME),
        ),
        lines(
            "Prefix cache", "Share of prompts' tokens that were found in it.", "percentunit", Query(hits, NAME), top=1
        ),
    ]


def _replicas() -> list[Panel]:
    start = by("max", "service_name, instance, stage", shown(serving.START_SECONDS))
    states = by("count", "service_name, state", shown(serving.REPLICA_STATE))
    revisions = by("count", "service_name, revision", shown(serving.REPLICA_INFO))
    refused = by("sum", SERVICE, shown(serving.ADAPTERS_REFUSED))
    devices = [
        by("sum", "resource", one(metric, "resource"))
        for metric in (operator.SERVICE_DEVICES_REQUESTED, operator.SERVICE_DEVICES_ALLOCATED)
    ]
    return [
        lines(
            "Wanted and ready",
            "Replicas of each service.",
            "none",
            Query(one(operator.SERVICE_WANTED), f"{NAME} wanted"),
            Query(one(operator.SERVICE_READY), f"{NAME} ready"),
        ),
        lines(
            "Replicas by state", "By their own word.", "none", Query(states, "{{service_name}} {{state}}"), stacked=True
        ),
        lines(
            "Replicas that may be led to",
            "1 while the Service may lead to a replica.",
            "none",
            Query(by("max", "service_name, instance", shown(serving.REPLICA_READY)), REPLICA),
        ),
        lines(
            "Start",
            "Duration of each stage of a replica's last start: fetching files, checking them, loading the engine.",
            "s",
            Query(start, f"{REPLICA} {{{{stage}}}}"),
        ),
        lines(
            "Revisions",
            "Replicas of each revision.",
            "none",
            Query(revisions, "{{service_name}} {{revision}}"),
            stacked=True,
        ),
        lines(
            "Adapters",
            "Replicas that have each adapter loaded; 0 is one that is wanted and loaded nowhere.",
            "none",
            Query(one(operator.SERVICE_ADAPTERS, "adapter"), "{{service_name}} {{adapter}}"),
        ),
        lines(
            "Adapters in replicas",
            "How many each replica has loaded, and how many it cannot load, over all replicas.",
            "none",
            Query(by("max", "service_name, instance", shown(serving.ADAPTERS_LOADED)), f"{REPLICA} loaded"),
            Query(or_zero(refused), "{{service_name}} refused"),
        ),
        lines(
            "vLLM's metrics",
            "1 when vLLM's own metrics are part of a replica's scrape; without them most curves above have gaps.",
            "none",
            Query(by("min", "service_name, instance", shown(serving.ENGINE_SCRAPED)), REPLICA),
        ),
        lines(
            "Devices",
            "What services ask for and hold. Those on processors have none.",
            "none",
            Query(devices[0], "{{resource}} asked for"),
            Query(devices[1], "{{resource}} held"),
        ),
    ]
