"""A model and its adapters are served without an error while everything beneath changes."""

import asyncio
import json
import shutil
import signal
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client, NotFoundError, OpenAI, PermissionDeniedError
from product import Product, wait_for

from tiny_language_model import write_adapter, write_manifest, write_model
from trireme.resources.inference_status import ServiceCondition, ServiceState, ServiceStatus
from trireme_cli.local import STORE_SECRET

Json = dict[str, Any]
pytestmark = pytest.mark.long
REQUESTS, REQUESTS_PER_SECOND = 500, 1.5
START_SECONDS = 420.0
TOKENS = 24


@dataclass
class Released:
    """A model and adapters in the store, as exports leave them."""

    product: Product
    prefix: str = field(default_factory=lambda: f"serving-{uuid.uuid4().hex[:8]}")

    def __post_init__(self) -> None:
        write_model(self.folder("base"))
        self.digest = write_manifest(self.folder("base"))
        for seed, name in enumerate(("fr", "de"), start=1):
            write_adapter(self.folder(name), self.folder("base"), self.uri("base"), seed)
            write_manifest(self.folder(name), base={"uri": self.uri("base"), "digest": self.digest})
        write_adapter(self.folder("foreign"), self.folder("base"), "s3://trireme/other", 3)
        write_manifest(self.folder("foreign"), base={"uri": "s3://trireme/other", "digest": "sha256:" + "0" * 64})

    def folder(self, name: str) -> Path:
        return self.product.bucket / self.prefix / name

    def uri(self, name: str) -> str:
        return f"s3://trireme/{self.prefix}/{name}"


@dataclass
class TestedService:
    """One service as its users see it."""

    __test__ = False
    product: Product
    name: str

    @property
    def status(self) -> ServiceStatus:
        path = f"/apis/trireme.dev/v1alpha1/namespaces/default/inferenceservices/{self.name}"
        return ServiceStatus.model_validate(self.product.cluster.request("GET", path).get("status") or {})

    def condition(self, kind: ServiceCondition) -> tuple[str, str, str]:
        found = self.status.condition(kind)
        return (found.status, found.reason, found.message) if found else ("", "", "")

    def wait_state(self, state: ServiceState, seconds: float = START_SECONDS) -> ServiceStatus:
        def look() -> ServiceStatus | None:
            status = self.status
            return status if status.state == state else None

        try:
            found: ServiceStatus = wait_for(f"{self.name} is {state}", look, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.status.model_dump_json(indent=1)}") from error
        return found

    def patch(self, spec: Json) -> None:
        self.product.kubectl("patch", "tis", self.name, "--type=merge", "-p", json.dumps({"spec": spec}))

    def client(self) -> OpenAI:
        return OpenAI(base_url=self.status.url, api_key="none", max_retries=0)

    def answer(self, model: str) -> str:
        done = self.client().completions.create(model=model, prompt="def f(", max_tokens=TOKENS, temperature=0)
        return done.choices[0].text

    def processes(self, pod: str) -> list[psutil.Process]:
        """Everything that runs in a pod, the program that came first at the head."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("POD_NAME") == pod:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return sorted(found, key=lambda p: p.create_time())

    def delete(self) -> None:
        self.product.kubectl("delete", "tis", self.name, "--ignore-not-found", "--wait=false")
        selector = f"trireme.dev/service-name={self.name}"
        wait_for(
            f"the pods of {self.name} are gone",
            lambda: not json.loads(self.product.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"],
            120,
        )


def manifest(product: Product, name: str, uri: str, **spec: Any) -> Json:
    return {
        "apiVersion": "trireme.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {
            "model": {"uri": uri},
            "task": "completion",
            "dtype": "float32",
            "maxModelLength": 128,
            "maxConcurrency": 4,
            "kvCache": "64Mi",
            "replicas": 1,
            "drainSeconds": 20,
            "startupDeadlineSeconds": 600,
            "pods": {
                "accelerator": {"kind": "cpu"},
                "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            },
            "store": {"pathStyle": True, "credentials": {"secretRef": {"name": STORE_SECRET}}},
            "cache": {"hostPath": str(product.directory / "models")},
            **spec,
        },
    }


@pytest.fixture
def released(product: Product) -> Released:
    return Released(product)


@pytest.fixture
def services(product: Product) -> Iterator[list[TestedService]]:
    made: list[TestedService] = []
    yield made
    for service in made:
        service.delete()


def apply(product: Product, services: list[TestedService], given: Json) -> TestedService:
    service = TestedService(product, given["metadata"]["name"])
    services.append(service)
    product.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(given))
    return service


class Traffic(threading.Thread):
    """Streamed requests at a steady rate, for the model and an adapter in turn: REQUESTS, and on until `enough`."""

    def __init__(self, url: str, models: tuple[str, ...]) -> None:
        super().__init__(daemon=True)
        self._url, self._models = url, models
        self.begun = 0
        self.enough = threading.Event()
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []

    def run(self) -> None:
        asyncio.run(self._all())

    async def _all(self) -> None:
        # The real client, without the retries that would hide a refused request.
        http = DefaultAsyncHttpx2Client(trust_env=False)
        async with AsyncOpenAI(base_url=self._url, api_key="none", max_retries=0, http_client=http) as client:
            tasks = []
            while self.begun < REQUESTS or not self.enough.is_set():
                tasks.append(asyncio.create_task(self._one(client, self.begun)))
                self.begun += 1
                await asyncio.sleep(1 / REQUESTS_PER_SECOND)
            await asyncio.gather(*tasks)

    async def _one(self, client: AsyncOpenAI, number: int) -> None:
        model = self._models[number % len(self._models)]
        try:
            stream = await client.completions.create(
                model=model, prompt=f"def f{number}(", max_tokens=TOKENS, temperature=0, stream=True
            )
            reasons = [chunk.choices[0].finish_reason async for chunk in stream if chunk.choices]
            if reasons[-1] != "length":
                raise AssertionError(f"the stream ended with {reasons[-1]}")
            self.answers[model] += 1
        except Exception as error:
            self.errors.append(f"{number} {model}: {type(error).__name__}: {error}")


def told(service: TestedService) -> dict[str, list[tuple[str, str]]]:
    return {pod.name: [(a.name, a.uri) for a in pod.adapters] for pod in service.status.pods if pod.ready}


@pytest.mark.timeout(2400)
def test_no_request_fails_while_a_replica_is_drained_and_killed_a_revision_rolls_out_and_an_adapter_is_swapped(
    product: Product, released: Released, services: list[TestedService]
) -> None:
    adapters = [{"name": "fr", "uri": released.uri("fr")}]
    given = manifest(product, "tiny", released.uri("base"), replicas=2, adapters=adapters)
    service = apply(product, services, given)
    status = service.wait_state(ServiceState.READY)
    assert status.model is not None
    assert status.model.digest == released.digest
    assert service.condition(ServiceCondition.ADAPTERS_LOADED)[:2] == ("True", "Loaded")
    assert len({pod.node for pod in status.pods}) == 2
    first = service.answer("fr")
    assert first != service.answer("tiny")
    with pytest.raises(PermissionDeniedError):  # nobody but the spec changes adapters
        service.client().post("/load_lora_adapter", body={"lora_name": "x", "lora_path": "/"}, cast_to=object)

    assert status.url is not None
    traffic = Traffic(status.url, ("tiny", "fr"))
    traffic.start()
    wait_for("some requests", lambda: traffic.begun >= 10, 60)

    gone = status.pods[0]
    assert gone.node is not None
    product.kubectl("drain", gone.node, "--ignore-daemonsets", "--delete-emptydir-data", "--force", seconds=180)
    product.local.kill_node(gone.node)
    service.wait_state(ServiceState.READY)

    service.patch({"maxConcurrency": 3})
    wait_for("the new revision is wanted", lambda: service.status.state == ServiceState.UPDATING, 60)
    service.wait_state(ServiceState.READY)
    assert service.status.serving_revision != status.serving_revision

    service.patch({"adapters": [{"name": "fr", "uri": released.uri("de")}]})
    wanted = [("fr", released.uri("de"))]
    wait_for("the adapter is swapped", lambda: [*told(service).values()] == [wanted, wanted], 120)

    traffic.enough.set()
    traffic.join(REQUESTS / REQUESTS_PER_SECOND + 120)
    assert not traffic.is_alive()
    assert traffic.errors == []
    assert traffic.answers.total() == traffic.begun >= REQUESTS
    second = service.answer("fr")
    assert second not in (first, service.answer("tiny"))

    _a_killed_replica_gets_its_adapters_again(service, wanted)
    _an_adapter_of_another_base_is_refused(service, released)
    assert service.answer("fr") == second


def _a_killed_replica_gets_its_adapters_again(service: TestedService, wanted: list[tuple[str, str]]) -> None:
    victim, other = sorted(told(service))
    for process in service.processes(victim):
        process.send_signal(signal.SIGKILL)
    wait_for("its adapters are not told of any more", lambda: victim not in told(service), 30)
    assert told(service)[other] == wanted
    wait_for("they are loaded again", lambda: told(service) == {victim: wanted, other: wanted}, START_SECONDS)
    assert next(pod.restarts for pod in service.status.pods if pod.name == victim) == 1


def _an_adapter_of_another_base_is_refused(service: TestedService, released: Released) -> None:
    kept = {"name": "fr", "uri": released.uri("de")}
    service.patch({"adapters": [kept, {"name": "foreign", "uri": released.uri("foreign")}]})
    found = wait_for(
        "the adapter is refused",
        lambda: (c := service.condition(ServiceCondition.ADAPTERS_LOADED))[1] == "AdapterBaseMismatch" and c,
        60,
    )
    assert "adapter_config.json" in found[2]
    with pytest.raises(NotFoundError):
        service.answer("foreign")
    service.patch({"adapters": [kept]})
    service.wait_state(ServiceState.READY, 60)


def no_tokenizer(directory: Path) -> None:
    for path in directory.glob("tokenizer*"):
        path.unlink()


def cut_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def fantasy(directory: Path) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["FantasyForCausalLM"]}))


BAD = {
    "no-tokenizer": (no_tokenizer, "TokenizerMissing", "tokenizer.json"),
    "cut-weights": (cut_weights, "WeightsCorrupt", "model.safetensors"),
    "fantasy": (fantasy, "ArchitectureUnknown", "config.json"),
}


@pytest.mark.timeout(400)
def test_a_model_that_cannot_be_served_is_said_with_reason_and_file_and_nothing_crashes(
    product: Product, released: Released, services: list[TestedService]
) -> None:
    for name, (damage, _, _) in BAD.items():
        shutil.copytree(released.folder("base"), released.folder(name), ignore=shutil.ignore_patterns("manifest.json"))
        damage(released.folder(name))
        apply(product, services, manifest(product, name, released.uri(name)))
    found = [service for service in services if service.name in BAD]
    for service in found:
        _, reason, file = BAD[service.name]
        status, said, message = wait_for(
            f"{service.name}: {reason}",
            lambda service=service: (c := service.condition(ServiceCondition.MODEL_AVAILABLE))[0] == "False" and c,
            120,
        )
        assert (status, said) == ("False", reason)
        assert message.startswith(f"{file}: ")
        assert service.status.state == ServiceState.FAILED
    time.sleep(10)  # longer than a container that ends by itself would take to be started anew
    assert [pod.restarts for service in found for pod in service.status.pods] == [0, 0, 0]


@pytest.mark.timeout(600)
def test_a_mended_model_is_served_without_an_edit_and_scaled_by_kubectl(
    product: Product, released: Released, services: list[TestedService]
) -> None:
    shutil.copytree(released.folder("base"), released.folder("late"), ignore=shutil.ignore_patterns("manifest.json"))
    no_tokenizer(released.folder("late"))
    service = apply(product, services, manifest(product, "late", released.uri("late"), task="chat"))
    wait_for("it is refused", lambda: service.status.state == ServiceState.FAILED, 120)
    for path in released.folder("base").glob("*"):
        if path.name.startswith(("tokenizer", "chat_template")):
            shutil.copyfile(path, released.folder("late") / path.name)
    service.wait_state(ServiceState.READY)
    messages = [{"role": "user", "content": "hello"}]
    done = service.client().chat.completions.create(model="late", messages=messages, max_tokens=4)  # type: ignore[arg-type]
    assert done.choices[0].message.content is not None
    product.kubectl("scale", "tis/late", "--replicas=0")
    status = service.wait_state(ServiceState.STOPPED, 60)
    assert status.ready_replicas == 0
