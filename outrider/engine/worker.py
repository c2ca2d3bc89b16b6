"""The base of drafters and verifiers, which open sessions on an engine."""

from outrider.engine.engine import Engine
from outrider.engine.scheduling.scheduler import Scheduler


class Worker:
    """An engine and the scheduler of its passes.

    Args:
        slots_per_session: how many slots of the engine's cache each session owns.
    """

    def __init__(self, engine: Engine, slots_per_session: int = 1) -> None:
        self.engine = engine
        self.slots_per_session = slots_per_session
        self.scheduler = Scheduler(
            engine,
            engine.cache.num_slots,
            engine.batch_limits,
            engine.threads,
            engine.token_limits,
            engine.cache.give_back,
        )

    @property
    def num_slots(self) -> int:
        """The maximum number of sessions."""
        return self.engine.cache.num_slots // self.slots_per_session

    @property
    def num_free_slots(self) -> int:
        """The number of sessions that can be opened now."""
        return self.scheduler.num_free_slots // self.slots_per_session

    def longest(self, length: int) -> int:
        """The longest text, in tokens, of a session that says so; 0: it does not say."""
        return min(length or self.engine.max_context_length, self.engine.max_context_length)

    def check(self) -> None:
        """Raises EngineFailed if the engine cannot run passes any more. Call it once a second."""
        self.scheduler.check()

    def close(self) -> None:
        self.scheduler.close()
        self.engine.close()
