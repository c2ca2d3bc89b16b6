"""A drafter that replays recorded texts with a given error rate, at a model's cost.

For measurements that should not depend on the quality of a draft. The model runs as usual,
predrafts included, but its choices are replaced.

At each position of a text, the choice is right with the given probability, by independent draws
that are the same for all outcomes. If it is wrong, the text's token is the r-th runner-up with the
probability in `RUNNER_UP_CHANCES`, or none of the runners-up. The choices carry these same
probabilities: the draft knows how often it is right, but not when. After a wrong token nothing can
be accepted, so it does not matter what is proposed there.
"""

import json
import random
import zlib
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from draft_service.drafters.drafting import Sampler
from draft_service.drafters.eagle3 import Eagle3Session
from draft_service.drafters.fan_out import UNKNOWN_STEP_TIME, StepTime
from draft_service.drafters.model import ModelDrafter, ModelDrafterSession
from outrider.engine.engine import Engine
from outrider.errors import ConfigurationError, InvalidRequest
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import Proposal, SamplingParams
from outrider.sampling.sampler import Choice

REPLAY = "replay:"

# How often the target's token is the first, second, ... runner-up where the default
# draft is wrong, greedy, on 26 texts of 32 tokens.
RUNNER_UP_CHANCES = (0.388, 0.149, 0.096, 0.047, 0.05, 0.024, 0.011, 0.007)


@dataclass(frozen=True)
class Script:
    """The texts that a draft replays, and how often it is right.

    Args:
        model: the draft model that runs, for its cost.
        acceptance: the probability that a draft token is right.
        texts: prompt and output tokens, each as one sequence.
    """

    model: str
    acceptance: float
    texts: Sequence[Sequence[int]] = ()
    seed: int = 0

    @classmethod
    def read(cls, path: Path) -> "Script":
        """Reads a script in JSON. Raises ConfigurationError."""
        try:
            script = cls(**json.loads(path.read_text()))
            is_valid = 0.0 <= script.acceptance <= 1.0 and isinstance(script.model, str)
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(f"cannot replay {path}: {error}") from error
        if not is_valid:
            raise ConfigurationError(f"cannot replay {path}: acceptance must be from 0 to 1")
        return script

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def text(self, beginning: Sequence[int]) -> Sequence[int]:
        """The first text that begins with `beginning`. Raises InvalidRequest without one."""
        for text in self.texts:
            if list(text[: len(beginning)]) == list(beginning):
                return text
        raise InvalidRequest("no recorded text begins with this prompt")


def draw_ranks(text: Sequence[int], acceptance: float, seed: int) -> list[int]:
    """For each position, the rank of the text's token among the draft's choices; 0: it is right.

    A rank above that of all runners-up means that it is not among them.
    """
    # The same draws in every session, different ones for every text.
    source = random.Random(f"{seed} {zlib.crc32(array('Q', text).tobytes())}")
    wrong_ranks = range(1, len(RUNNER_UP_CHANCES) + 2)
    chances = (*RUNNER_UP_CHANCES, 1 - sum(RUNNER_UP_CHANCES))
    ranks = []
    for _ in text:
        is_right = source.random() < acceptance
        rank = source.choices(wrong_ranks, chances)[0]
        ranks.append(0 if is_right else rank)
    return ranks


@dataclass(frozen=True, slots=True)
class ReplaySampler(Sampler):
    """Takes the model's choices, and moves the text's token to its drawn rank.

    If an engine chooses several tokens in a row, it reads the model's own choices in between.
    """

    text: Sequence[int]
    ranks: Sequence[int]
    acceptance: float

    def revise(self, choices: list[Choice], index: int) -> list[Choice]:
        if index >= len(self.text):
            return choices
        others = [c.token_id for c in choices if c.token_id != self.text[index]]
        rank, width = self.ranks[index], len(choices)
        token_ids = [*others[:rank], self.text[index], *others[rank:]]
        if rank >= width:
            token_ids = others
        return [
            Choice(token_id, self._prob(rank)) for rank, token_id in enumerate(token_ids[:width])
        ]

    def _prob(self, rank: int) -> float:
        """The probability that the choice at `rank` is the text's token."""
        if rank == 0:
            return self.acceptance
        chance = RUNNER_UP_CHANCES[rank - 1] if rank <= len(RUNNER_UP_CHANCES) else 0.0
        return (1 - self.acceptance) * chance


class ReplaySession(ModelDrafterSession):
    """A session that runs the model, but proposes the script's text."""

    def __init__(self, drafter: ModelDrafter, max_length: int, script: Script) -> None:
        super().__init__(drafter, max_length)
        self._script = script

    async def propose(
        self,
        context_length: int,
        token_ids: Sequence[int],
        num_speculative_tokens: int,
        params: SamplingParams,
        vocab_size: int | None,
        hidden_states: HiddenStates | None = None,
    ) -> Proposal:
        if not isinstance(self._sampler, ReplaySampler):  # the first request has the prompt
            self._sampler = self._replay(self._script.text(token_ids))
        return await super().propose(
            context_length, token_ids, num_speculative_tokens, params, vocab_size, hidden_states
        )

    def _replay(self, text: Sequence[int]) -> ReplaySampler:
        sampler, script = self._sampler, self._script
        ranks = draw_ranks(text, script.acceptance, script.seed)
        return ReplaySampler(
            sampler.params, sampler.token_ids, sampler.eos_token_ids, text, ranks, script.acceptance
        )


class ReplayEagle3Session(ReplaySession, Eagle3Session):
    """The same for a feature draft."""


class ReplayDrafter(ModelDrafter):
    """Opens sessions. Each reads the script again, so that a benchmark can rewrite it."""

    def __init__(
        self,
        engine: Engine,
        num_predrafts: int,
        path: Path,
        step_time: StepTime = UNKNOWN_STEP_TIME,
    ) -> None:
        super().__init__(engine, num_predrafts, step_time=step_time)
        self._path = path

    def open_session(self, max_length: int = 0) -> ReplaySession:
        """Opens a session. Raises NoFreeSlot, ConfigurationError."""
        is_plain = self.engine.reads_hidden_states is None
        kind = ReplaySession if is_plain else ReplayEagle3Session
        return kind(self, self.longest(max_length), Script.read(self._path))
