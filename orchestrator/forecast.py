"""Forecasts how long requests take, from recent ones.

Three things are learned: the time per new token and per prompt token, each as a function of the
number of running requests, and how likely texts are to end by themselves.
"""

from dataclasses import dataclass

# Roughly how many observations count; older ones are discounted.
_NUM_STEPS = 1024
_NUM_TEXTS = 64


@dataclass(frozen=True, slots=True)
class Work:
    """The work of a request.

    Args:
        max_new_tokens: how many tokens it gets unless it ends by itself.
        may_end: whether it can end by itself, at an EOS token or a stop string.
    """

    num_prompt_tokens: int
    max_new_tokens: int
    may_end: bool = False


class Ratio:
    """A ratio of a sum of amounts to a sum of counts, both exponentially discounted.

    About the last `num_terms` terms count; initially about the last half of all terms, since the
    first ones are often slow.
    """

    def __init__(self, num_terms: int) -> None:
        self._max_terms = num_terms
        self._num_seen = 0
        self._amount = self._count = 0.0

    def add(self, amount: float, count: int) -> None:
        self._num_seen += 1
        keep = 1 - 1 / min(self._max_terms, 1 + self._num_seen / 2)
        self._amount = keep * self._amount + amount
        self._count = keep * self._count + count

    @property
    def value(self) -> float:
        return self._amount / self._count if self._count else 0.0


class ByLoad:
    """A ratio for each power of two of the number of running requests: 1, 2 to 3, 4 to 7, ..."""

    def __init__(self, num_terms: int) -> None:
        self._num_terms = num_terms
        self._ratios: dict[int, Ratio] = {}

    def add(self, num_running: int, amount: float, count: int) -> None:
        magnitude = num_running.bit_length()
        self._ratios.setdefault(magnitude, Ratio(self._num_terms)).add(amount, count)

    def value(self, num_running: int) -> float:
        """The ratio at the nearest observed load; 0 without observations."""
        if not self._ratios:
            return 0.0
        magnitude = num_running.bit_length()
        return self._ratios[min(self._ratios, key=lambda seen: abs(seen - magnitude))].value

    def forget(self, num_running: int) -> None:
        self._ratios.pop(num_running.bit_length(), None)


@dataclass(frozen=True, slots=True)
class Speed:
    """The expected times of requests at a given number of running requests.

    Args:
        end_probability: for texts that can end by themselves: that the next token is the last.
    """

    token_seconds: float
    prompt_token_seconds: float
    end_probability: float

    def seconds(self, work: Work, num_done: int = 0) -> float:
        """The expected remaining time of a request that has `num_done` new tokens."""
        seconds = self._num_tokens(work, num_done) * self.token_seconds
        if not num_done:
            seconds += work.num_prompt_tokens * self.prompt_token_seconds
        return seconds

    def _num_tokens(self, work: Work, num_done: int) -> float:
        """The expected number of further tokens, if a text may end at any with the same chance."""
        num_left = max(0, work.max_new_tokens - num_done)
        if not work.may_end or not self.end_probability:
            return num_left
        return (1 - (1 - self.end_probability) ** num_left) / self.end_probability


class Forecast:
    """Learns from requests how long others will take; without observations, the answer is 0."""

    def __init__(self) -> None:
        self._token_seconds = ByLoad(_NUM_STEPS)
        self._prompt_token_seconds = ByLoad(_NUM_TEXTS)
        self._ends = Ratio(_NUM_TEXTS)

    def speed(self, num_running: int) -> Speed:
        return Speed(
            self._token_seconds.value(num_running),
            self._prompt_token_seconds.value(num_running),
            self._ends.value,
        )

    def seconds(self, work: Work, num_running: int, num_done: int = 0) -> float:
        """The expected remaining time of a request that has `num_done` new tokens, while
        `num_running` requests run."""
        return self.speed(num_running).seconds(work, num_done)

    def saw_prompt(self, num_running: int, seconds: float, work: Work, num_tokens: int) -> None:
        """Notes how long a request took for its prompt and its first `num_tokens` tokens."""
        if token_seconds := self._token_seconds.value(num_running):
            reading = max(0.0, seconds - num_tokens * token_seconds)
            self._prompt_token_seconds.add(num_running, reading, work.num_prompt_tokens)

    def saw_tokens(self, num_running: int, seconds: float, num_tokens: int) -> None:
        """Notes how long a request took for `num_tokens` further tokens."""
        self._token_seconds.add(num_running, seconds, num_tokens)

    def saw_text(self, work: Work, num_tokens: int, ended: bool) -> None:
        """Notes how many tokens a text had, and whether it `ended` by itself."""
        if work.may_end:
            self._ends.add(float(ended), num_tokens)

    def forget(self, work: Work, num_running: int) -> None:
        """Drops the observations that the forecast of a request was based on."""
        self._token_seconds.forget(num_running)
        self._prompt_token_seconds.forget(num_running)
        if work.may_end:
            self._ends = Ratio(_NUM_TEXTS)
