"""How far the target is, and when to send the next verification so that it need not wait."""

from __future__ import annotations

from dataclasses import dataclass

# Nearer than this, a longer draft is worth more than a saved round trip: gRPC and a busy
# machine alone take a millisecond or two.
_FAR_NS = 4e6

_WEIGHT = 0.2  # of the latest result

# A busy machine holds up a result now and then, and none is quicker than its way. So the
# estimate of the way falls at once and rises by little.
_LARGEST_RISE = 4.0
_SHORTEST_NS = 1e5


@dataclass
class Distance:
    """What results have taken lately, in nanoseconds: on their way, and at the target."""

    network_ns: float = 0.0
    server_ns: float = 0.0

    @property
    def is_far(self) -> bool:
        return self.network_ns > _FAR_NS

    def observe(self, waited_ns: int, server_ns: int, is_pipelined: bool) -> None:
        """Of one sent ahead nobody can tell how long it was on its way."""
        if not is_pipelined:
            way_ns = max(_SHORTEST_NS, waited_ns - server_ns)
            most_ns = _LARGEST_RISE * self.network_ns or way_ns
            self.network_ns = min(way_ns, _blend(self.network_ns, min(way_ns, most_ns)))
        self.server_ns = _blend(self.server_ns, server_ns)

    def patience_ns(self, is_sent_ahead: bool) -> float:
        """How long the next verification can be held back without the target waiting for it.

        Counted from when a verification was sent: what is sent when the target has had time
        for that one arrives when it is done. One that was sent ahead was begun when the
        result before it left the target, a way ago, and another way is ahead.
        """
        return self.server_ns - (self.network_ns if is_sent_ahead else 0.0)


def _blend(average: float, value: float) -> float:
    return average + _WEIGHT * (value - average) if average else float(value)
