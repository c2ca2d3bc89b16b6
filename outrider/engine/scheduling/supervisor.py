"""Supervision of an engine's thread."""

from outrider.errors import EngineFailed

# How many passes in a row may fail. If a request causes the failure, the next pass succeeds; an
# engine whose passes all fail has lost its device.
MAX_FAILED_PASSES = 10

# How many checks, one per second, an engine with work may fail to end a pass. A pass should take a
# fraction of a second, but may take a minute while kernels are compiled. Checks are counted instead
# of seconds, since a suspended process or machine makes none.
MAX_IDLE_LOOKS = 300


class Supervisor:
    """Tracks how passes end, on the engine's thread; is queried from another one."""

    def __init__(self) -> None:
        self.failure: EngineFailed | None = None
        """Why the engine runs no more passes; None while it does."""
        self._num_passes = 0
        self._num_failed_passes = 0  # since the last one that succeeded
        self._last_num_passes = 0  # at the last look
        self._num_idle_looks = 0

    def end_pass(self, failed: bool) -> None:
        """Notes the end of a pass. Raises EngineFailed if too many in a row have failed."""
        self._num_passes += 1
        self._num_failed_passes = self._num_failed_passes + 1 if failed else 0
        if self._num_failed_passes >= MAX_FAILED_PASSES:
            raise EngineFailed(f"{MAX_FAILED_PASSES} forward passes in a row have failed")

    def end(self, error: BaseException) -> EngineFailed:
        """Notes that `error` ends the engine's thread; returns the error for pending jobs."""
        if not isinstance(error, EngineFailed):
            error = EngineFailed("the engine's thread has failed")
        self.failure = error
        return error

    def look(self, is_busy: bool) -> None:
        """Checks the thread; call it once a second.

        Raises:
            EngineFailed: the thread has ended; or it has work, but has not ended a pass during
                the last MAX_IDLE_LOOKS calls.
        """
        has_moved = self._num_passes != self._last_num_passes
        self._last_num_passes = self._num_passes
        self._num_idle_looks = 0 if has_moved or not is_busy else self._num_idle_looks + 1
        if self._num_idle_looks >= MAX_IDLE_LOOKS:
            self.failure = EngineFailed(
                f"the engine has work and has ended no forward pass for {MAX_IDLE_LOOKS} s"
            )
        if self.failure is not None:
            raise self.failure
