"""The sections of a run: each starts what it needs, measures ways side by side, gives figures."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from outrider_bench import SECTION_NAMES
from outrider_bench.baselines import one_process, plain_transformers
from outrider_bench.harness import capacity
from outrider_bench.harness.stand import Legs, Stand
from outrider_bench.models.figures import TARGET_ONLY, figures
from outrider_bench.runs import Run, Task, Way, interleave

SEQUENTIAL, PIPELINED = "sequential", "pipelined"
ONE_PROCESS, TRANSFORMERS, ASSISTED = "one process", "transformers", "transformers assisted"
NO_DRAFT_TOKENS, PROMPT_LOOKUP = "k = 0", "prompt lookup, no draft"

# Whether the round trips to draft and target are longer.
LEGS = {"draft": (1, 0), "target": (0, 1), "both": (1, 1)}

PREDRAFTS: dict[str, int | None] = {SEQUENTIAL: 0, PIPELINED: None}  # None: the default


@dataclass(frozen=True)
class Plan:
    """The plan of a run: tasks, and the points of curves."""

    tasks: Sequence[Task]  # greedy; of the side-by-side table
    curve_tasks: Sequence[Task]  # of the curves
    k: int | None = None  # None: the policy's
    looks_up: bool = True  # as well as drafting; with fixed lengths or acceptance never
    rtts_ms: Sequence[float] = (5.0, 20.0, 50.0)
    lengths: Sequence[int] = (1, 2, 4, 8)
    acceptances: Sequence[float] = (0.0, 0.4, 0.6, 0.8, 0.95)
    sessions: Sequence[int] = (1, 2, 4, 8, 16)


def modes(stand: Stand, plan: Plan) -> dict[str, Any]:
    """Every way to generate, greedy and at temperature 1."""
    found = {}
    for temperature in (0.0, 1.0):
        tasks = [dataclasses.replace(task, temperature=temperature) for task in plan.tasks]
        with stand.section() as stack:
            legs = Legs(stand.draft_address)
            clients = stand.orchestrators(stack, dict.fromkeys(PREDRAFTS, legs))
            ways: dict[str, Way] = {
                TRANSFORMERS: partial(stand.transformers.run, plain_transformers.generate),
                TARGET_ONLY: stand.target_only,
                NO_DRAFT_TOKENS: stand.over_grpc(clients[SEQUENTIAL], 0),
                PROMPT_LOOKUP: stand.over_grpc(stand.alone, plan.k, prompt_lookup=True),
                ONE_PROCESS: lambda task: stand.one_process.run(
                    one_process.generate, stand.num_prompt_tokens(task), task, plan.k, plan.looks_up
                ),
            }
            ways |= {
                name: stand.over_grpc(client, plan.k, PREDRAFTS[name], plan.looks_up)
                for name, client in clients.items()
            }
            if stand.assistant is not None:
                ways[ASSISTED] = lambda task: stand.transformers.run(
                    plain_transformers.generate_assisted, task, plan.k
                )
            result = figures(interleave(ways, tasks, stand.progress))
        if temperature:  # transformers draws other random numbers
            for name in {TRANSFORMERS, ASSISTED} & result.keys():
                result[name]["num_different"] = None
        found[f"temperature {temperature:g}"] = result
    return found


def round_trips(stand: Stand, plan: Plan) -> dict[str, Any]:
    """Longer round trips to the draft, the target, or both. Speedups are over the same network.

    By leg, then by added round-trip time; 0 is the same for all legs, and with the first one.
    """
    found: dict[str, Any] = {}
    for leg, (to_draft, to_target) in LEGS.items():
        found[leg] = {}
        for rtt in plan.rtts_ms if found["draft"] else (0.0, *plan.rtts_ms):
            legs = Legs(stand.draft_address, rtt * to_draft, rtt * to_target)
            with stand.section() as stack:
                clients = stand.orchestrators(stack, dict.fromkeys((TARGET_ONLY, *PREDRAFTS), legs))
                ways: dict[str, Way] = {TARGET_ONLY: stand.over_grpc(clients[TARGET_ONLY], 0)}
                ways |= {
                    name: stand.over_grpc(clients[name], plan.k, num_predrafts, plan.looks_up)
                    for name, num_predrafts in PREDRAFTS.items()
                }
                rows = interleave(ways, plan.curve_tasks, stand.progress)
            found[leg][f"{rtt:g}"] = figures(rows)
    return found


def draft_lengths(stand: Stand, plan: Plan) -> dict[str, Any]:
    """Fixed numbers of draft tokens a step, by mode and number."""
    with stand.section() as stack:
        legs = Legs(stand.draft_address)
        clients = stand.orchestrators(stack, dict.fromkeys(PREDRAFTS, legs))
        ways: dict[str, Way] = {TARGET_ONLY: stand.target_only}
        ways |= {
            f"{name} {k}": stand.over_grpc(clients[name], k, num_predrafts, False)
            for name, num_predrafts in PREDRAFTS.items()
            for k in plan.lengths
        }
        found = figures(interleave(ways, plan.curve_tasks, stand.progress))
    by_mode = {mode: {k: found[f"{mode} {k}"] for k in plan.lengths} for mode in PREDRAFTS}
    return {TARGET_ONLY: found[TARGET_ONLY], **by_mode}


def chosen_acceptance(stand: Stand, plan: Plan) -> dict[str, Any]:
    """The draft at its cost, right as often as chosen; by mode and acceptance."""
    with stand.section() as stack:
        address, tell = stand.replaying_draft(stack)
        names = [f"{mode} {a:g}" for mode in PREDRAFTS for a in plan.acceptances]
        clients = stand.orchestrators(stack, dict.fromkeys(names, Legs(address)))

        def replayed(mode: str, acceptance: float, task: Task) -> Run:
            tell(task, acceptance)
            client = clients[f"{mode} {acceptance:g}"]
            return stand.over_grpc(client, plan.k, PREDRAFTS[mode], False)(task)

        ways: dict[str, Way] = {TARGET_ONLY: stand.target_only}
        ways |= {
            f"{mode} {a:g}": partial(replayed, mode, a)
            for mode in PREDRAFTS
            for a in plan.acceptances
        }
        found = figures(interleave(ways, plan.curve_tasks, stand.progress))
    by_mode = {
        mode: {f"{a:g}": found[f"{mode} {a:g}"] for a in plan.acceptances} for mode in PREDRAFTS
    }
    return {TARGET_ONLY: found[TARGET_ONLY], **by_mode}


def sessions(stand: Stand, plan: Plan) -> dict[str, Any]:
    """Tokens a second of many sessions at once."""
    return capacity.measure(stand, plan.tasks, plan.sessions, plan.looks_up)


_IN_ORDER = (modes, round_trips, draft_lengths, chosen_acceptance, sessions)
SECTIONS = dict(zip(SECTION_NAMES, _IN_ORDER, strict=True))


def run(stand: Stand, plan: Plan, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, float]]:
    """The figures of these sections, and the seconds that each took. Raises OutriderError."""
    found, seconds = {}, {}
    for name, section in SECTIONS.items():
        if name in names:
            began = time.perf_counter()
            found[name] = section(stand, plan)
            seconds[name] = round(time.perf_counter() - began, 1)
    return found, seconds
