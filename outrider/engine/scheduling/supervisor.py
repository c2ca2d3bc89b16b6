"""Supervision of an engine's thread."""

from outrider.errors import EngineFailed

# Forward passes in a row that may fail. A request that makes its pass fail is alone, and the next
# pass succeeds; an engine without successful passes has lost its device.
MAX_FAILED_PASSES = 10

# Looks, a second apart, at an engine that has work and ends no pass. A pass should take a
# fraction of a second, and may take a minute while kernels are compiled. Looks are counted,
# not seconds: a process that was stopped, or a machine that slept, did not look meanwhile.
MAX_IDLE_LOOKS = 300


class Supervisor:
    """Notes how passes end, on the engine's thread, and is queried on another one."""

    def __init__(self) -> None:
        self.failure: EngineFailed | None = None
        """Why there will be no more passes; None while there are."""
        self._num_passes = 0
        self._num_failed_passes = 0  # since the last one that succeeded
        self._last_num_passes = 0  # at the last look
        self._num_idle_looks = 0

    def end_pass(self, failed: bool) -> None:
        """Raises EngineFailed if too many passes in a row have failed."""
        self._num_passes += 1
        self._num_failed_passes = self._num_failed_passes + 1 if failed else 0
        if self._num_failed_passes >= MAX_FAILED_PASSES:
            raise EngineFailed(f"{MAX_FAILED_PASSES} forward passes in a row have failed")

    def end(self, error: BaseException) -> EngineFailed:
        """Notes that `error` ends the engine's thread; returns the error of its jobs."""
        if not isinstance(error, EngineFailed):
            error = EngineFailed("the engine's thread has failed")
        self.failure = error
        return error

    def look(self, is_busy: bool) -> None:
        """Checks the thread; call it once a second.

        Raises:
            EngineFailed: the thread has ended, or has work and has ended no pass for
                MAX_IDLE_LOOKS looks.
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
