"""How a model is loaded: on a thread that ends with it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import threading
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.errors import ConfigurationError, ModelNotFound
from outrider.serving.loading import in_own_thread, load_served_model
from tests.support.models.eagle3 import make_eagle3
from tests.support.models.tiny_models import make_model
from tests.support.system import options


async def test_what_is_loaded_comes_from_a_thread_that_has_ended() -> None:
    thread = await in_own_thread(threading.current_thread)
    thread.join(60)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


async def test_what_fails_there_fails_here() -> None:
    def fail() -> None:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        await in_own_thread(fail)


async def test_who_is_cancelled_does_not_wait_for_it() -> None:
    may_end, has_ended = threading.Event(), threading.Event()
    has_begun, loop = asyncio.Event(), asyncio.get_running_loop()

    def load() -> None:
        loop.call_soon_threadsafe(has_begun.set)
        may_end.wait(60)
        has_ended.set()

    loading = asyncio.create_task(in_own_thread(load))
    await has_begun.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert not has_ended.is_set()
    may_end.set()


def test_a_text_ends_where_the_template_ends_a_turn(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama", eos_token_id=0)
    engine, served = load_served_model(options(folder), lambda what: None)
    assert engine.eos_token_ids == served.info.eos_token_ids == (0, 2)  # <|im_end|> is 2


def test_a_broken_template_is_told_when_the_model_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% nope %}"
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.WARNING):
        load_served_model(options(folder), lambda what: None)
    assert "messages are refused: TemplateSyntaxError" in caplog.text


def test_settings_that_are_not_applied_are_told_when_the_model_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model(tmp_path, "llama")
    (folder / "generation_config.json").write_text('{"repetition_penalty": 1.3}')
    with caplog.at_level(logging.WARNING):
        load_served_model(options(folder), lambda what: None)
    assert "generation_config.json is not heeded in repetition_penalty 1.3" in caplog.text


def test_a_broken_generation_config_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path, "llama")
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(ModelNotFound, match=r"generation_config\.json: it is no JSON object"):
        load_served_model(options(folder), lambda what: None)


def test_a_folder_without_a_model_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"no config\.json; it has model\.gguf"):
        load_served_model(options(tmp_path), lambda what: None)


def test_a_feature_draft_says_what_it_reads(tmp_path: Path) -> None:
    """And has the tokenizer of its target, if it has none and names it."""
    folder, target = make_eagle3(tmp_path / "draft"), make_model(tmp_path / "target", "llama")
    settings = json.loads((folder / "config.json").read_text())
    settings["speculators_config"]["verifier"]["name_or_path"] = str(target)
    (folder / "config.json").write_text(json.dumps(settings))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    draft = dataclasses.replace(options(folder), is_draft=True, batch_invariant=False)
    engine, served = load_served_model(draft, lambda what: None)
    assert isinstance(engine, Eagle3Engine)
    assert served.info.reads_hidden_states == engine.reads_hidden_states
    _, other = load_served_model(options(target), lambda what: None)
    assert served.info.vocabulary_fingerprint == other.info.vocabulary_fingerprint
    assert other.info.reads_hidden_states is None


def test_what_is_logged_of_a_draft_is_what_it_says_of_itself(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_model(tmp_path, "llama")
    draft = dataclasses.replace(
        options(folder, slots=8), dtype="int8", slots_per_session=4, batch_invariant=False
    )
    with caplog.at_level(logging.INFO):
        engine, served = load_served_model(draft, lambda what: None)
    assert (served.info.dtype, served.info.num_slots) == ("int8", engine.cache.num_slots // 4)
    assert f"in int8: KV cache for {served.info.num_slots} sessions" in caplog.text


def test_a_feature_draft_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="it can only be a draft"):
        load_served_model(options(make_eagle3(tmp_path)), lambda what: None)
