"""The test stand: all systems that are measured, each in a separate process."""

from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory

from draft_service.drafters.replay import REPLAY, Script
from outrider.cli.processes import ServiceProcess, to_arguments
from outrider.client.client import Client
from outrider.embedded import EMBEDDED_DRAFT, resolve_model
from outrider.engine.loading.model_folder import is_eagle3
from outrider.engine.options import EngineOptions
from outrider.errors import OutriderError
from outrider_bench.baselines import one_process, plain_transformers
from outrider_bench.harness.delay import DelayingProxy
from outrider_bench.harness.hosts import Hosts, bound_to
from outrider_bench.harness.worker import Worker
from outrider_bench.runs import OverGrpc, Run, Task

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """The models of a run, and how they run."""

    target: str = "default"
    draft: str = "default"
    device: str = "auto"
    dtype: str = "auto"
    draft_dtype: str = "auto"
    threads: int = 1
    slots: int = 16
    """Of each service: more than sessions, since a slot is free only after its last pass."""


@dataclass(frozen=True)
class Legs:
    """Addresses of the services, and the round-trip times that are added to them."""

    draft: str | None
    draft_rtt_ms: float = 0.0
    target_rtt_ms: float = 0.0


class Stand:
    """Starts services and workers and ends them all with the `with` block.

    Raises:
        ServiceUnavailable: a service did not start, or ended; the message says why.
        OutriderError: a worker cannot load a model.
    """

    def __init__(self, models: Models, hosts: Hosts, progress: Progress) -> None:
        self.models = models
        self.hosts = hosts
        self.progress = progress
        self.draft_address = self.target_address = ""
        self._stack = ExitStack()
        self._services: list[ServiceProcess] = []
        self._references: dict[Task, Run] = {}

    def __enter__(self) -> "Stand":
        with ExitStack() as stack:
            self._stack = stack
            self._start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    @contextmanager
    def section(self) -> Iterator[ExitStack]:
        """A part of the run; systems that are started on the stack that it yields end with it.

        Raises:
            ServiceUnavailable: a service has ended meanwhile. The loop would continue without
                a lost draft, and the figures would be of something else.
        """
        with ExitStack() as stack:
            try:
                yield stack
            except OutriderError as error:
                self._check_services(error)
                raise
            self._check_services(None)

    def _check_services(self, cause: OutriderError | None) -> None:
        for service in self._services:
            if service.poll() is not None:
                raise service.failure() from cause

    def _start(self) -> None:
        models = self.models
        self.folder = Path(self._stack.enter_context(TemporaryDirectory()))
        self.progress("starting target and draft")
        target = self.begin(
            self._stack, "target_service", self.hosts.target, self._settings(models.target)
        )
        draft = self.begin_draft(self._stack, models.draft)
        self.target_address = target.wait_until_ready()
        self.draft_address = draft.wait_until_ready()
        self.alone = self.orchestrators(self._stack, {"": Legs(None)})[""]
        self.info = self.alone.info()

    @cached_property
    def assistant(self) -> str | None:
        """The draft's folder; None if transformers cannot run it, since it reads hidden states."""
        draft = self.models.draft
        folder = resolve_model(EMBEDDED_DRAFT if draft == "default" else draft)
        return None if is_eagle3(folder) else folder

    @cached_property
    def transformers(self) -> Worker:
        """A process with `plain_transformers`, started when it is first needed."""
        models = self.models
        return self.begin_worker(
            "transformers",
            plain_transformers.load,
            resolve_model(models.target),
            self.assistant,
            models.device,
            self.info.target.dtype,
            models.threads,
        )

    @cached_property
    def one_process(self) -> Worker:
        """A process with both models and the loop, started when it is first needed."""
        models = self.models
        engine = partial(
            EngineOptions, device=models.device, threads=models.threads, slots=models.slots
        )
        return self.begin_worker(
            "one process",
            one_process.load,
            engine(resolve_model(models.target), dtype=models.dtype),
            engine(models.draft, dtype=models.draft_dtype),
        )

    def _settings(self, model: str) -> dict[str, object]:
        models = self.models
        return {
            "model": model,
            "port": 0,
            "device": models.device,
            "dtype": models.dtype,
            "threads": models.threads,
            "slots": models.slots,
        }

    def begin(
        self,
        stack: ExitStack,
        module: str,
        cores: Set[int] | None,
        settings: Mapping[str, object],
    ) -> ServiceProcess:
        """Starts a service on these cores, until `stack` closes."""
        arguments = to_arguments({"log_level": "warning", **settings})
        with bound_to(cores):
            service = stack.enter_context(ServiceProcess(module, arguments))
        self._services.append(service)
        stack.callback(self._services.remove, service)
        return service

    def begin_worker(self, name: str, load: Callable[..., None], *arguments: object) -> Worker:
        """Starts a worker on the target's host that has loaded what it needs."""
        self.progress(f"loading {name}")
        worker = self._stack.enter_context(Worker(name, self.hosts.target))
        worker.run(load, *arguments)
        return worker

    def begin_draft(
        self, stack: ExitStack, model: str, on_target_host: bool = False
    ) -> ServiceProcess:
        """Another draft service, until `stack` closes; `wait_until_ready` gives its address."""
        cores = self.hosts.target if on_target_host else self.hosts.draft
        settings = {**self._settings(model), "dtype": self.models.draft_dtype}
        return self.begin(stack, "draft_service", cores, settings)

    def orchestrators(self, stack: ExitStack, legs: Mapping[str, Legs]) -> dict[str, Client]:
        """Clients of separate orchestrators on the target's host, until `stack` closes.

        They do not share what they measure and learn.
        """
        services = {}
        for name, leg in legs.items():
            target = self._through_proxy(stack, self.target_address, leg.target_rtt_ms)
            draft = "none"
            if leg.draft is not None:
                draft = self._through_proxy(stack, leg.draft, leg.draft_rtt_ms)
            settings = {"port": 0, "target": target, "draft": draft}
            services[name] = self.begin(stack, "orchestrator", self.hosts.target, settings)
        return {
            name: stack.enter_context(Client(service.wait_until_ready()))
            for name, service in services.items()
        }

    @staticmethod
    def _through_proxy(stack: ExitStack, address: str, rtt_ms: float) -> str:
        if not rtt_ms:
            return address
        return stack.enter_context(DelayingProxy(address, rtt_ms / 1e3)).address

    def draft_info(self) -> dict[str, object]:
        """The draft's model."""
        with self.section() as stack:
            client = self.orchestrators(stack, {"": Legs(self.draft_address)})[""]
            draft = client.info().draft
        return asdict(draft) if draft is not None else {}

    def over_grpc(
        self,
        client: Client,
        num_speculative_tokens: int | None = None,
        num_predrafts: int | None = None,
        prompt_lookup: bool | None = None,
    ) -> OverGrpc:
        """A way through one of the orchestrators."""
        is_chat = self.info.has_chat_template
        return OverGrpc(client, is_chat, num_speculative_tokens, num_predrafts, prompt_lookup)

    def num_prompt_tokens(self, task: Task) -> list[int]:
        return self.transformers.run(plain_transformers.encode, task.prompt)

    def target_only(self, task: Task) -> Run:
        """The baseline: the target alone, through its service and an orchestrator."""
        run = self.over_grpc(self.alone, 0)(task)
        self._references[task] = run
        return run

    def text(self, task: Task) -> list[int]:
        """The prompt's tokens and the target's after them."""
        run = self._references.get(task) or self.target_only(task)
        return [*self.num_prompt_tokens(task), *run.token_ids]

    def replaying_draft(self, stack: ExitStack) -> tuple[str, Callable[[Task, float], None]]:
        """The address of a replaying draft, and a function that sets its text and acceptance."""
        path = self.folder / "script.json"

        def tell(task: Task, acceptance: float) -> None:
            Script(self.models.draft, acceptance, [self.text(task)], task.seed).write(path)

        Script(self.models.draft, 0.0).write(path)
        service = self.begin_draft(stack, f"{REPLAY}{path}")
        return service.wait_until_ready(), tell
