"""Costs of a draft and its break-even acceptance, from measured runs of fixed draft lengths."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outrider.protocol.stages import Stage
from outrider_bench.models.figures import stage_ms

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
    other_ms: float

    @property
    def ms(self) -> float:
        return self.draft_ms + self.verify_ms + self.other_ms

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
        k = counts["num_draft_tokens"] / num_steps
        loop_ms = decode_ms_per_token(found) * (num_tokens - num_prompts) / num_steps
        return cls(k, draft_ms, verify_ms, loop_ms - draft_ms - verify_ms - plain_ms)


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
    lengths: Mapping[int, Mapping[str, Any]], alone: Mapping[str, Any]
) -> dict[int, dict[str, Any]]:
    """By k: cost coefficient (draft step / step of the target alone), break-even acceptance.

    Args:
        lengths: figures of the sequential loop by draft length; without draft tokens left out.
        alone: figures of the target alone.
    """
    target_ms = decode_ms_per_token(alone)
    table = {}
    for k, found in lengths.items():
        if "counts" not in found:
            continue
        cost = StepCost.of(found, target_ms)
        table[k] = {
            "draft_ms_per_token": round(cost.draft_ms / cost.k, 2),
            "verify_ms": round(cost.verify_ms, 2),
            "other_ms": round(cost.other_ms, 2),
            "cost_coefficient": round(cost.draft_ms / cost.k / target_ms, 3),
            "break_even_acceptance": break_even_acceptance(cost, target_ms),
            "draft_acceptance_rate": found["ratios"]["draft_acceptance_rate"],
        }
    return table
