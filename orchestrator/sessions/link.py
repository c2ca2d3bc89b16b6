"""Polls a service once a second: whether it answers, and whether it is compatible."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from orchestrator.sessions.clients import ModelClient
from outrider.errors import DeadlineExceeded, OutriderError, ServiceUnavailable
from outrider.protocol.messages import ModelInfo, Outage

log = logging.getLogger(__name__)

# Seconds between two queries, and until an answer counts as missing. The sum of both is the time
# until the loss of a service is noticed.
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 5.0


class Link:
    """The state of one service, as polled.

    Args:
        accept: called with each answer; raises OutriderError if the service is not compatible.
    """

    def __init__(self, client: ModelClient, accept: Callable[[ModelInfo], Awaitable[None]]) -> None:
        self.info: ModelInfo | None = None
        """The last accepted answer; None before the first one."""
        self.outage: Outage | None = None
        """None while the service can be used, and before the first query."""
        self.num_outages = 0
        """Outages that are over."""
        self._client = client
        self._accept = accept
        self._told: set[str] = set()  # reasons of the outage
        self._watching: asyncio.Task[None] | None = None

    @property
    def usable(self) -> ModelInfo | None:
        """The last accepted answer; None while the service cannot be used."""
        return None if self.outage is not None else self.info

    async def look(self, timeout: float = _ANSWER_SECONDS) -> ModelInfo:
        """Queries the service. Raises OutriderError if it does not answer or is not compatible.

        With a `timeout` below the default, a missing answer is not noted as an outage.
        """
        try:
            info = await self._client.model_info(timeout)
            await self._accept(info)
        except DeadlineExceeded as error:
            late = ServiceUnavailable(f"{self._client.service}: no answer for {timeout:g} s")
            if timeout >= _ANSWER_SECONDS:
                self._note_outage(late.message)
            raise self.explain(late) from error
        except OutriderError as error:
            self._note_outage(error.message)
            if (explained := self.explain(error)) is not error:
                raise explained from error
            raise
        except Exception as error:  # of what a service of another release sends, say
            words = f"what it sent is not understood: {type(error).__name__}: {error}"
            self._note_outage(f"{self._client.service}: {words}", error)
            raise ServiceUnavailable(f"{self._name}: {words}") from error
        self.note(info)
        return info

    def explain(self, error: OutriderError) -> OutriderError:
        """The error; if the service cannot serve, one that adds its address and since when."""
        service = f"{self._client.service}: "  # begins what gRPC says, and not the service
        if not isinstance(error, ServiceUnavailable) or not error.message.startswith(service):
            return error
        since = time.time() if self.outage is None else self.outage.since_ms / 1e3
        at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since))
        words = error.message.removeprefix(service)
        return type(error)(f"{self._name} cannot be used since {at}: {words}")

    def check(self) -> None:
        """Raises ServiceUnavailable if the service could not be used at the last query."""
        if self.outage is not None:
            raise ServiceUnavailable(self.outage.reason)

    def note(self, info: ModelInfo) -> None:
        """Notes that the service can be used."""
        if self.outage is not None:
            seconds = time.time() - self.outage.since_ms / 1e3
            log.warning("%s can be used again, after %.0f s", self._name, seconds)
            self.num_outages += 1
        self.info, self.outage = info, None
        self._told.clear()

    def _note_outage(self, reason: str, unexpected: Exception | None = None) -> None:
        before = self.outage
        if reason not in self._told:  # once, not at every look: a name has several addresses
            self._told.add(reason)
            words = reason.removeprefix(f"{self._client.service}: ")
            log.warning("%s cannot be used: %s", self._name, words, exc_info=unexpected)
        since_ms = before.since_ms if before else round(1e3 * time.time())
        self.outage = Outage(self._client.address, reason, since_ms)

    @property
    def _name(self) -> str:
        return f"{self._client.service} at {self._client.address}"

    def watch(self) -> None:
        """Queries the service every second until `close`."""
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            with suppress(OutriderError):  # which is noted
                await self.look()

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        await self._client.close()
