"""A draft and a target that come, go, hang, and come back as others."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.servicer import GenerationServicer
from orchestrator.sessions.link import Link
from orchestrator.sessions.pair import Pair
from outrider.errors import (
    DeadlineExceeded,
    HiddenStateMismatch,
    IdleTimeout,
    ModelLoading,
    NoFreeSlot,
    OutriderError,
    QueueFull,
    ServiceUnavailable,
    VocabularyMismatch,
    WrongService,
)
from outrider.protocol.hidden_states import HiddenStateSpec
from outrider.protocol.messages import ModelInfo, TokenizerFiles

INFO = ModelInfo("a-model", max_context_length=9, vocab_size=5, vocabulary_fingerprint="same")
AWAY = ServiceUnavailable("the draft: cannot connect to 127.0.0.1:1: Connection refused")


class Client:
    """Stands for a DraftClient or TargetClient that answers what the test says."""

    address = "127.0.0.1:1"

    def __init__(self, service: str = "the draft") -> None:
        self.service = service
        self.answer: ModelInfo | OutriderError = INFO
        self.num_files = 0
        self.is_closed = False
        self.given_up_for: OutriderError | None = None  # as a session

    async def model_info(self, timeout: float) -> ModelInfo:
        if isinstance(self.answer, OutriderError):
            raise self.answer
        return self.answer

    async def wait_until_loaded(self, *arguments: Any) -> ModelInfo:
        return await self.model_info(0)

    async def tokenizer_files(self) -> TokenizerFiles:
        self.num_files += 1
        return TokenizerFiles("{}", None, {})

    def open_session(self, *args: Any) -> Any:
        return self

    def close(self) -> asyncio.Future[None]:
        """Of a session, too, which nobody awaits."""
        self.is_closed = True
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        ended.set_result(None)
        return ended


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    def warnings() -> list[str]:
        found = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        caplog.clear()
        return found

    return warnings


async def accept(info: ModelInfo) -> None:
    """Whatever it is."""


async def test_loss_and_return_are_told_once(lines: Callable[[], list[str]]) -> None:
    client: Any = Client()
    link = Link(client, accept)
    assert await link.look() == link.info == INFO
    client.answer = AWAY
    for _ in range(3):
        with pytest.raises(ServiceUnavailable):
            await link.look()
    assert link.outage is not None
    since = link.outage.since_ms
    assert link.outage.reason == AWAY.message
    assert lines() == [
        "the draft at 127.0.0.1:1 cannot be used: cannot connect to 127.0.0.1:1: Connection refused"
    ]
    elsewhere = ServiceUnavailable(AWAY.message.replace("127.0.0.1", "[::1]"))
    for client.answer in (elsewhere, AWAY, elsewhere):  # a name with two addresses
        with pytest.raises(ServiceUnavailable):
            await link.look()
    assert len(lines()) == 1
    client.answer = DeadlineExceeded("the draft: Deadline Exceeded")
    at = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(since / 1e3))
    where = f"the draft at 127.0.0.1:1 cannot be used since {at}"
    with pytest.raises(ServiceUnavailable, match=f"^{where}: no answer for 5 s$"):
        await link.look()
    assert link.outage.since_ms == since
    with pytest.raises(ServiceUnavailable):
        link.check()
    assert len(lines()) == 1
    client.answer = INFO
    await link.look()
    link.check()
    client.answer = DeadlineExceeded("the draft: Deadline Exceeded")
    with pytest.raises(ServiceUnavailable, match="no answer for 1 s"):
        await link.look(1.0)  # who asks in a hurry does not say that it is lost
    assert link.outage is None
    [line] = lines()
    assert line.startswith("the draft at 127.0.0.1:1 can be used again, after")


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    class FakeTokenizer:
        def __init__(self, files: TokenizerFiles) -> None:
            self.vocab = {"the": 1}

    monkeypatch.setattr("orchestrator.sessions.pair.Tokenizer", FakeTokenizer)
    target, draft = Client("the target"), Client()
    target.vocab = {"the": 1}  # type: ignore[attr-defined]
    return target, draft  # type: ignore[return-value]


def pair_of(target: Any, draft: Any) -> Pair:
    return Pair(target, INFO, target, draft)


def test_only_that_a_service_cannot_serve_is_explained() -> None:
    link = Link(Client(), accept)  # type: ignore[arg-type]
    assert "cannot be used since 20" in link.explain(AWAY).message
    assert type(link.explain(ModelLoading("the draft: still"))) is ModelLoading
    for error in (ServiceUnavailable("not of a service"), QueueFull("full")):
        assert link.explain(error) is error


async def test_a_draft_joins_when_it_comes(clients: Any) -> None:
    target, draft = clients
    pair = pair_of(target, draft)
    assert pair.draft_link is not None
    draft.answer = AWAY
    with pytest.raises(ServiceUnavailable):
        await pair.draft_link.look()
    with pair.sessions(Any, True, None) as sessions:  # type: ignore[arg-type]
        assert sessions.drafter is None
    assert pair.draft_outage is not None
    pair.check()  # the target alone serves
    draft.answer = INFO
    await pair.draft_link.look()
    with pair.sessions(Any, True, None) as sessions:  # type: ignore[arg-type]
        assert sessions.drafter is draft
    assert pair.draft_outage is None


async def test_a_text_gets_a_draft_back_that_was_away(clients: Any) -> None:
    """Not one that it lost for another reason, nor one that reads other hidden states."""
    target, draft = clients
    pair = pair_of(target, draft)
    assert pair.draft_link is not None
    await pair.draft_link.look()
    with pair.sessions(Any, True, None) as sessions:  # type: ignore[arg-type]
        assert sessions.reopen_drafter() is None
        draft.answer = AWAY
        with pytest.raises(ServiceUnavailable):
            await pair.draft_link.look()
        assert sessions.reopen_drafter() is None
        target.answer = replace(INFO, gives_hidden_states=True, num_layers=4, hidden_size=8)
        await pair.target_link.look()
        draft.answer = replace(INFO, reads_hidden_states=HiddenStateSpec((0, 3), 8, 64))
        await pair.draft_link.look()
        assert sessions.reopen_drafter() is None
        draft.answer = INFO
        await pair.draft_link.look()
        assert sessions.reopen_drafter() is draft
        assert sessions.reopen_drafter() is None
        draft.given_up_for = NoFreeSlot("full")
        assert sessions.reopen_drafter() is None
        draft.given_up_for = IdleTimeout("its slots were given away")
        assert sessions.reopen_drafter() is draft
        assert sessions.draft_failure is draft.given_up_for


async def test_a_draft_that_comes_back_as_another_is_not_used(
    clients: Any, lines: Callable[[], list[str]]
) -> None:
    target, draft = clients
    pair = pair_of(target, draft)
    assert pair.draft_link is not None
    draft.answer = replace(INFO, vocabulary_fingerprint="other, of the same tokens")
    await pair.draft_link.look()
    assert pair.draft_info == draft.answer
    target.vocab["the"], target.vocab["cat"] = 2, 1
    draft.answer = replace(INFO, vocabulary_fingerprint="other tokens")
    for _ in range(3):
        with pytest.raises(VocabularyMismatch):
            await pair.draft_link.look()
    assert draft.num_files == 2  # they are compared once
    assert pair.draft_info is None
    assert len(lines()) == 1
    draft.answer = INFO
    await pair.draft_link.look()
    assert pair.draft_info == INFO


async def test_a_draft_that_reads_what_the_target_does_not_give_is_not_used(clients: Any) -> None:
    target, draft = clients
    pair = pair_of(target, draft)
    assert pair.draft_link is not None
    draft.answer = replace(INFO, reads_hidden_states=HiddenStateSpec((0, 3), 8, 64))
    with pytest.raises(HiddenStateMismatch):
        await pair.draft_link.look()
    assert pair.draft_info is None
    target.answer = replace(INFO, gives_hidden_states=True, num_layers=4, hidden_size=8)
    await pair.target_link.look()
    await pair.draft_link.look()
    assert pair.draft_info == draft.answer
    target.answer = INFO  # started again on a device that gives none
    await pair.target_link.look()
    with pytest.raises(HiddenStateMismatch):
        await pair.draft_link.look()


async def test_admission_follows_the_slots_of_a_target_that_was_restarted(clients: Any) -> None:
    target, _ = clients
    pair, servicer = pair_of(target, None), GenerationServicer()
    pair.target_info = replace(INFO, num_slots=2)
    servicer.serve_pair(pair)
    assert servicer.admission.num_slots == 2
    target.answer = replace(INFO, num_slots=6)
    await pair.target_link.look()
    assert servicer.admission.num_slots == 6


async def test_readiness_follows_the_target_and_its_vocabulary(clients: Any) -> None:
    target, _ = clients
    pair = pair_of(target, None)
    for answer in (AWAY, replace(INFO, vocabulary_fingerprint="another")):
        target.answer = answer
        with pytest.raises(OutriderError):
            await pair.target_link.look()
        with pytest.raises(ServiceUnavailable):
            pair.check()
        target.answer = replace(INFO, eos_token_ids=(7,))  # started again with other settings
        await pair.target_link.look()
        pair.check()
        assert pair.target_info.eos_token_ids == (7,)


async def test_what_is_not_understood_is_an_outage_until_it_is(
    monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[str]]
) -> None:
    """Its watcher goes on, whatever is raised."""
    monkeypatch.setattr("orchestrator.sessions.link._LOOK_SECONDS", 0.0)
    failures, accepted = [ValueError("no such type")] * 2, asyncio.Event()

    async def accept(info: ModelInfo) -> None:
        if failures:
            raise failures.pop()
        accepted.set()

    client: Any = Client()
    link = Link(client, accept)
    with pytest.raises(ServiceUnavailable, match=r"the draft at .*: ValueError: no such type"):
        await link.look()
    assert link.outage is not None
    link.watch()
    async with asyncio.timeout(30):
        await accepted.wait()
    assert not failures
    assert (link.outage, link.info) == (None, INFO)
    told, again = lines()
    assert "what it sent is not understood: ValueError: no such type" in told
    assert "can be used again" in again
    await link.close()


@pytest.mark.parametrize("which", ["the target", "the draft"])
async def test_a_pair_that_does_not_come_about_leaves_no_channel(
    which: str, clients: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, draft = clients
    monkeypatch.setattr("orchestrator.sessions.pair.TargetClient", lambda address: target)
    monkeypatch.setattr("orchestrator.sessions.pair.DraftClient", lambda address: draft)
    [faulty] = [client for client in clients if client.service == which]
    faulty.answer = WrongService("another one")
    with pytest.raises(WrongService):
        await Pair.connect("target:1", "draft:1")
    assert target.is_closed
    assert draft.is_closed == (which == "the draft")  # which was not even made before
