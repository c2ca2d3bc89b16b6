"""The target as a writer of texts to learn from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from outrider.distill.__main__ import main
from outrider.distill.layers.learning import check_layers
from outrider.distill.recipe import check_same_recipe
from outrider.distill.shared.settings import Recipe
from outrider.distill.shared.texts import Texts, read_text
from outrider.distill.shared.writing import Writer
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.engine.scheduling.scheduler import Scheduler
from outrider.errors import ConfigurationError
from tests.outrider.engine.cuda.test_static_passes import Again


def test_texts_wait_for_the_slots_of_those_before(tiny_models: Callable[..., Path]) -> None:
    """A slot is not free yet when its last token is known, but when the pass has ended."""
    folder = tiny_models("llama")
    engine = Engine(EngineOptions(str(folder), "cpu", "float32", 1, 1, 64))
    scheduler = Scheduler(engine, engine.cache.num_slots)
    writer = Writer(engine, scheduler, AutoTokenizer.from_pretrained(folder), 64, [0.0])
    taken = scheduler.acquire()
    try:
        with ThreadPoolExecutor(1) as executor:
            shard = executor.submit(writer.shard, 0, ["the cat", "a dog"])
            while not scheduler.num_waiting:
                assert not shard.done(), shard.result()
            scheduler.release(taken)
            assert len(shard.result(60)) == 2
    finally:
        scheduler.close()


def test_answers_have_their_temperatures_in_turn(tiny_models: Callable[..., Path]) -> None:
    folder = tiny_models("llama")
    engine = Engine(EngineOptions(str(folder), "cpu", "float32", 1, 4, 64))
    scheduler = Scheduler(engine, engine.cache.num_slots)
    writer = Writer(engine, scheduler, AutoTokenizer.from_pretrained(folder), 64, [0.0, 5.0])
    try:
        first, second = (list(writer.shard(number, ["the cat"] * 4)) for number in (0, 1))
    finally:
        scheduler.close()
    assert first[0] == first[2] == second[0] == second[2]
    assert len({tuple(text) for text in (*first, *second)}) == 5


@pytest.mark.usefixtures("as_on_a_gpu")
def test_engines_that_choose_by_themselves_write_the_same(
    tiny_models: Callable[..., Path],
) -> None:
    folder = tiny_models("llama")
    questions = ["the cat", "a dog sat on the log", "the fox", "rain"] * 2
    written = []
    for chooses in (False, True):
        engine = Engine(EngineOptions(str(folder), "cpu", "float32", 1, 8, 64))
        if chooses:
            engine.use_graphs(Again)
            engine.use_choices()
        scheduler = Scheduler(engine, engine.cache.num_slots)
        writer = Writer(engine, scheduler, AutoTokenizer.from_pretrained(folder), 64, [0.0, 1.0])
        try:
            written.append(list(writer.shard(0, questions)))
        finally:
            scheduler.close()
    assert written[0] == written[1]
    assert engine.choices is not None
    assert engine.choices.num_recordings > 3


@pytest.mark.parametrize("temperatures", ["", "0,", "0,hot", "-1", "nan", "inf"])
def test_temperatures_that_make_no_sense_are_refused(temperatures: str, tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path), "--temperatures", temperatures]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "a list such as 0,0.5,1" in result.output


@pytest.mark.parametrize("layers", ["a", "1-", "-3", "7-3", ","])
def test_layers_that_are_none_are_refused(layers: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path), "--layers", layers])
    assert result.exit_code == 2
    assert "--layers" in result.output


@pytest.mark.parametrize("flags", [["--seed", "-1"], ["--threads", "100000"]])
def test_numbers_that_nothing_takes_are_refused(flags: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--out", str(tmp_path), *flags])
    assert result.exit_code == 2
    assert flags[0] in result.output


@pytest.mark.parametrize("read", [read_text, Texts.load])
@pytest.mark.parametrize("content", [b"\xff\xfe", None])
def test_files_that_cannot_be_read_are_named(
    read: Callable[[Path], Any], content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "odd").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"cannot read .*odd"):
        read(tmp_path / "odd")


def test_a_folder_that_cannot_be_made_is_named(
    tiny_models: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    flags = ["--target", str(tiny_models("llama")), "--out", str(tmp_path / "file" / "out")]
    result = CliRunner().invoke(main, [*flags, "--num-layers", "1"])
    assert isinstance(result.exception, ConfigurationError)
    assert "cannot write to" in result.exception.message


def test_texts_need_room_for_the_chat_template(tiny_models: Callable[..., Path]) -> None:
    folder = tiny_models("llama")
    engine = Engine(EngineOptions(str(folder), "cpu", "float32", 1, 1, 64))
    scheduler = Scheduler(engine, engine.cache.num_slots)
    try:
        with pytest.raises(ConfigurationError, match="--max-length"):
            Writer(engine, scheduler, AutoTokenizer.from_pretrained(folder), 4, [0.0])
    finally:
        scheduler.close()


@pytest.mark.parametrize(("layers", "count"), [((0, 9), 1), ((), 2), ((), 12)])
def test_layers_that_the_target_does_not_have_are_refused_before_it_writes(
    layers: tuple[int, ...], count: int, tiny_models: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigurationError, match="the target has 2 layers"):
        check_layers(str(tiny_models("llama")), layers, count)


def test_what_left_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    nothing: dict[str, Any] = dict.fromkeys((field.name for field in fields(Recipe)), None)
    first, second = (Recipe(**nothing | {"steps": steps}) for steps in (1, 2))
    path = tmp_path / "recipe.json"
    check_same_recipe(first, path)
    check_same_recipe(second, path)
    (tmp_path / "texts.npz").touch()
    check_same_recipe(second, path)
    with pytest.raises(ConfigurationError, match=r"other settings \(steps\)"):
        check_same_recipe(first, path)
