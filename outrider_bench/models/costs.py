"""Costs of a draft and its break-even acceptance, from measured runs of fixed draft lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression
from typing import Any

from outrider.protocol.stages import Stage
from outrider_bench.models.figures import stage_ms
from outrider_bench.models.loop_model import Times

# Stages that come once for each text, before or after its steps.
_BEFORE = (
    Stage.TOKENIZE,
    Stage.QUEUE,
    Stage.PREFILL_TARGET,
    Stage.PREFILL_NETWORK,
    Stage.PREFILL_DRAFT,
    Stage.DELIVER,
)


@dataclass(frozen=True)
class StepCost:
    """The times of a sequential step with k draft tokens, in milliseconds."""

    k: float
    draft_ms: float
    verify_ms: float
    draft_network_ms: float
    other_ms: float

    @property
    def ms(self) -> float:
        return self.draft_ms + self.verify_ms + self.draft_network_ms + self.other_ms

    @classmethod
    def of(cls, found: Mapping[str, Any], target_ms: float) -> "StepCost":
        """The costs in a way's figures. A few steps without draft tokens take `target_ms`."""
        counts, num_tokens, num_prompts = found["counts"], found["num_tokens"], found["num_prompts"]
        num_steps = counts["num_steps"]
        num_plain = num_tokens - num_prompts - num_steps - counts["num_accepted_tokens"]
        per_step = num_tokens / num_steps
        plain_ms = target_ms * num_plain / num_steps
        verify_ms = per_step * stage_ms(found, Stage.VERIFY_COMPUTE) - plain_ms
        draft_ms = per_step * stage_ms(found, Stage.DRAFT_COMPUTE)
        network_ms = per_step * stage_ms(found, Stage.DRAFT_NETWORK, Stage.DRAFT_QUEUE)
        k = counts["num_draft_tokens"] / num_steps
        loop_ms = decode_ms_per_token(found) * (num_tokens - num_prompts) / num_steps
        other_ms = loop_ms - draft_ms - verify_ms - network_ms - plain_ms
        return cls(k, draft_ms, verify_ms, network_ms, other_ms)


def decode_ms_per_token(found: Mapping[str, Any]) -> float:
    """The time per token after the first, without the rest of the draft's prefill."""
    num_tokens, num_later = found["num_tokens"], found["num_tokens"] - found["num_prompts"]
    total = sum(found["critical_path_ms_per_token"].values()) - stage_ms(found, *_BEFORE)
    return float(total * num_tokens / num_later)


def break_even_acceptance(cost: StepCost, target_ms: float) -> float | None:
    """The acceptance rate at which drafting breaks even; None if no rate is enough.

    A step gives 1 + a + a^2 + ... + a^k tokens (arXiv 2211.17192).
    """
    needed = cost.ms / target_ms
    if tokens_per_step(1.0, cost.k) < needed:
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens_per_step(middle, cost.k) < needed else (low, middle)
    return round(high, 3)


def tokens_per_step(acceptance: float, k: float) -> float:
    """Expected tokens of a step, the target's own included."""
    if acceptance >= 1.0:
        return k + 1
    return float((1 - acceptance ** (k + 1)) / (1 - acceptance))


def cost_table(
    lengths: Mapping[int, Mapping[str, Any]], target_ms: float
) -> dict[int, dict[str, Any]]:
    """By k: cost coefficient (draft step / step of the target alone), break-even acceptance.

    Args:
        lengths: figures of the sequential loop by draft length.
        target_ms: the target's time per token alone.
    """
    table = {}
    for k, found in lengths.items():
        cost = StepCost.of(found, target_ms)
        table[k] = {
            "draft_ms_per_token": round(cost.draft_ms / cost.k, 2),
            "verify_ms": round(cost.verify_ms, 2),
            "other_ms": round(cost.draft_network_ms + cost.other_ms, 2),
            "cost_coefficient": round(cost.draft_ms / cost.k / target_ms, 3),
            "break_even_acceptance": break_even_acceptance(cost, target_ms),
            "draft_acceptance_rate": found["ratios"]["draft_acceptance_rate"],
        }
    return table


def fit_times(
    lengths: Mapping[int, Mapping[str, Any]],
    sequential: Mapping[int, Mapping[str, Any]],
    target_ms: float,
    draft_pass_ms: Mapping[int, float],
    target_pass_ms: Mapping[int, float],
) -> Times:
    """The loop model's times.

    Drafts that end early are hardly longer with a larger k, so the cost of a further token in
    a verification is taken from separate passes of the target.

    Args:
        lengths: figures by draft length of the mode to be modelled: verification takes
            longer there if the draft computes meanwhile.
        sequential: figures by draft length of the sequential loop, for the times of drafts.
        draft_pass_ms: of a pass of the draft by its number of sequences.
        target_pass_ms: of a pass of the target by its number of tokens.
    """
    costs = [StepCost.of(found, target_ms) for found in sequential.values()]
    own_costs = [StepCost.of(found, target_ms) for found in lengths.values()]
    _, verify_per_token = line(list(target_pass_ms.items()))
    verify = fmean([cost.verify_ms - verify_per_token * cost.k for cost in own_costs])
    draft, draft_step = line([(cost.k, cost.draft_ms) for cost in costs])
    one, per_predraft = line([(rows - 1, ms) for rows, ms in draft_pass_ms.items()])
    return Times(
        target_alone=target_ms,
        verify=verify,
        verify_per_token=verify_per_token,
        draft=max(0.0, draft),
        draft_step=draft_step,
        draft_per_predraft=draft_step * per_predraft / one,
        overhead=fmean([cost.other_ms for cost in costs]),
        draft_overhead=fmean([cost.draft_network_ms for cost in costs]),
    )


def line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line; flat through points of one x."""
    xs, ys = zip(*points, strict=True)
    if len(set(xs)) == 1:
        return fmean(ys), 0.0
    slope, intercept = linear_regression(xs, ys)
    return intercept, slope
