"""Sessions of a tiny feature draft, and what they should draft."""

import zlib
from collections.abc import AsyncIterator, Sequence

import pytest
import torch
from torch import Tensor

from draft_service.drafters.drafting import NUM_RUNNERS_UP
from draft_service.drafters.eagle3 import Eagle3Drafter, Eagle3Session
from outrider.engine.chunk import Chunk, Features
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.options import EngineOptions
from outrider.protocol.hidden_states import HiddenStates
from outrider.protocol.messages import GREEDY, Proposal, SamplingParams
from outrider.sampling.recorded_sampling import SamplingSpec
from tests.support.models.eagle3 import make_eagle3

PROMPT = list(range(20, 40))
SAMPLED = SamplingParams(temperature=1.0, seed=3)
NUM_SLOTS = 9
REFERENCE = NUM_SLOTS - 1  # a slot that no session takes, of two sessions with four slots each
WIDTH = 128


def rows_of(tokens: Sequence[int]) -> Tensor:
    """Hidden states of all tokens: a function of the tokens up to each."""
    rows = []
    for end in range(1, len(tokens) + 1):
        seed = zlib.crc32(str(list(tokens[:end])).encode())
        rows.append(torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed)))
    return torch.stack(rows).bfloat16().float()


def states_of(tokens: Sequence[int], first: int, end: int | None = None) -> HiddenStates:
    """Those from `first` up to `end`, or up to the last token but one."""
    end = len(tokens) - 1 if end is None else end
    rows = rows_of(tokens)[first:end].bfloat16()
    return HiddenStates(first, end - first, rows.view(torch.uint8).numpy().tobytes())


class Session:
    """A session, and the committed tokens that it has been told."""

    def __init__(self, drafter: Eagle3Drafter) -> None:
        self.real: Eagle3Session = drafter.open_session()
        self._tokens: list[int] = []
        self._num_states = 0

    async def propose(
        self,
        tokens: Sequence[int],
        k: int,
        params: SamplingParams = GREEDY,
        draft: Sequence[int] = (),
        first: int | None = None,
    ) -> Proposal:
        """Tells it what is new in `tokens`, hidden states from `first` on."""
        context_length = len(self._tokens)
        assert list(tokens[:context_length]) == self._tokens
        states = states_of(tokens, self._num_states if first is None else first)
        new = [*tokens[context_length:], *draft]
        proposal = await self.real.propose(context_length, new, k, params, None, states)
        self._tokens, self._num_states = list(tokens), len(tokens) - 1
        return proposal


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Eagle3Engine:
    folder = make_eagle3(tmp_path_factory.mktemp("eagle3"), flags=("fc_norm", "norm_output"))
    options = EngineOptions(
        str(folder), "cpu", "float32", slots=NUM_SLOTS, max_context_length=128, is_draft=True
    )
    return Eagle3Engine(options)


@pytest.fixture
async def drafter(engine: Eagle3Engine) -> AsyncIterator[Eagle3Drafter]:
    drafter = Eagle3Drafter(engine, num_predrafts=4)
    yield drafter
    drafter.scheduler.close()


def drafted(
    engine: Eagle3Engine,
    tokens: Sequence[int],
    k: int,
    params: SamplingParams = GREEDY,
    draft: Sequence[int] = (),
    first: int = 0,
) -> list[int]:
    """What k steps draft after `tokens`, with the states of the target, and `draft`, without."""
    unread, found = list(draft), []

    def follow(choices: list[object]) -> int:
        found.append(choices[0].token_id)  # type: ignore[attr-defined]
        return unread.pop(0) if unread else found[-1]

    rows = rows_of(tokens)[first:-1]
    features = Features(rows, False, first + 1, follow)  # type: ignore[arg-type]
    chunk = Chunk(REFERENCE, 0, tokens[first + 1 :], 1, features=features)
    engine.choose([chunk], [SamplingSpec(params, 100, 1 + NUM_RUNNERS_UP)], len(draft) + k)
    return found[len(draft) :]
