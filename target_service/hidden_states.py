"""The target's hidden states in a session's results."""

import sys

from outrider.engine.engine import Engine
from outrider.engine.scheduling.job import Job
from outrider.errors import InvalidRequest
from outrider.protocol.hidden_states import HiddenStates, HiddenStateSpec


def check_spec(spec: HiddenStateSpec, engine: Engine) -> None:
    """Raises InvalidRequest if the engine does not provide these hidden states."""
    if not engine.gives_hidden_states:
        raise InvalidRequest("this target gives no hidden states")
    if spec.hidden_size != engine.hidden_size:
        raise InvalidRequest(f"the hidden states of this target have size {engine.hidden_size}")
    if not spec.layers or max(spec.layers) >= engine.num_layers or spec.window < 1:
        raise InvalidRequest(
            f"hidden_states must name some of the layers 0 to {engine.num_layers - 1}, and a window"
        )


def states_read(job: Job, end: int, window: int) -> HiddenStates | None:
    """Hidden states of the tokens that `job` has read since the last call.

    Only those before index `end`, and of these the last `window`. None if it captures none.
    """
    taken = job.take_hidden_states()
    if taken is None:
        return None
    begin, rows = taken
    rows = rows[: end - begin][-window:]
    little_endian = rows.byteswap() if sys.byteorder == "big" else rows
    return HiddenStates(end - len(rows), len(rows), little_endian.tobytes())
