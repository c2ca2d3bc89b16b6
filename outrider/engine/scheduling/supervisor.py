"""Whether an engine's thread still does its work."""

from __future__ import annotations

from outrider.errors import EngineFailed

# Forward passes that may fail one after the other. One request that no pass survives fails
# alone, and the next pass succeeds; an engine of which none does has lost its device.
MAX_FAILED_PASSES = 10

# Looks, a second apart, at an engine that has work and ends no pass. A pass is made to take a
# fraction of a second, and may take a minute while kernels are compiled. Looks are counted,
# not seconds: a process that was stopped, or a machine that slept, did not look meanwhile.
MAX_IDLE_LOOKS = 300


class Supervisor:
    """Notes how passes end, on the engine's thread, and is asked on another one."""

    def __init__(self) -> None:
        self.failure: EngineFailed | None = None
        """Why the engine will not run another pass."""
        self._num_passes = 0
        self._num_failed_passes = 0  # since the last one that succeeded
        self._last_num_passes = 0  # at the last look
        self._num_idle_looks = 0

    def end_pass(self, failed: bool) -> None:
        """Raises EngineFailed if too many have failed one after the other."""
        self._num_passes += 1
        self._num_failed_passes = self._num_failed_passes + 1 if failed else 0
        if self._num_failed_passes >= MAX_FAILED_PASSES:
            raise EngineFailed(f"{MAX_FAILED_PASSES} forward passes in a row have failed")

    def end(self, error: BaseException) -> EngineFailed:
        """The engine's thread ends because of `error`; returns what its jobs fail with."""
        if not isinstance(error, EngineFailed):
            error = EngineFailed("the engine's thread has failed")
        self.failure = error
        return error

    def look(self, is_busy: bool) -> None:
        """Is to be called once a second.

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
