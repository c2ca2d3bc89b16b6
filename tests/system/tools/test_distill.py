"""`outrider distill` from the command line, on a tiny target."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from outrider.distill.__main__ import main
from outrider.distill.shared.settings import RECORD
from outrider.distill.shared.texts import Texts
from outrider.errors import ConfigurationError
from tests.support.models.eagle3 import make_eagle3
from tests.support.system import running_system

SETTINGS = {
    "--num-layers": "1",
    "--draft-vocabulary": "200",
    "--steps": "40",
    "--batch-size": "8",
    "--learning-rate": "3e-3",
    "--max-length": "96",
    "--checkpoint-every": "4",
    "--device": "cpu",
    "--dtype": "float32",
    "--threads": "1",
}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.txt"
    path.write_text("".join(f"what does the fox say to dog {i}?\n" for i in range(40)))
    return path


def flags(target: Path, out: Path, **changes: str) -> list[str]:
    given = {**SETTINGS, **{f"--{name.replace('_', '-')}": v for name, v in changes.items()}}
    parts = [part for flag in given.items() for part in flag]
    return ["--target", str(target), "--out", str(out), *parts]


def distill(target: Path, out: Path, *more: str, **changes: str) -> None:
    """Runs the command in this process, which has torch already."""
    finished = CliRunner().invoke(main, [*flags(target, out, **changes), *more])
    if finished.exception is not None:
        raise finished.exception


def interrupted_after_first_checkpoint(parts: list[str], out: Path) -> None:
    """Kills a run as soon as it has written a checkpoint."""
    command = [sys.executable, "-m", "outrider.distill", *parts]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (out / "work" / "checkpoint.pt").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.kill()
    process.wait()


@pytest.mark.process
async def test_a_killed_run_goes_on_to_the_same_draft_which_serves(
    tmp_path: Path, questions: Path, tiny_models: Callable[..., Path]
) -> None:
    target, whole, resumed = tiny_models("llama"), tmp_path / "whole", tmp_path / "resumed"
    distill(target, whole, prompts=str(questions))
    interrupted_after_first_checkpoint(flags(target, resumed, prompts=str(questions)), resumed)
    distill(target, resumed, prompts=str(questions))
    record = json.loads((resumed / "distillation.json").read_text())
    assert record["losses"][-1] < 0.9 * record["losses"][0]
    assert record["held_out"][-1][0] == 40
    for name, weights in load_file(whole / "model.safetensors").items():
        assert torch.equal(weights, load_file(resumed / "model.safetensors")[name]), name
    with pytest.raises(ConfigurationError, match=r"other settings \(steps\)"):
        distill(target, resumed, prompts=str(questions), steps="41")
    async with running_system(target, resumed, max_context_length=128) as system:
        alone = await system.generate("the cat", num_speculative_tokens=0, ignore_eos=True)
        text = await system.generate("the cat", num_speculative_tokens=4, ignore_eos=True)
    assert text.token_ids == alone.token_ids
    assert text.speculation.num_draft_tokens > 0


def test_texts_may_be_self_written_or_come_from_files(
    tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat and went on sitting there\n" * 20)
    data = Texts.of([[5, 6, 7, 8], [9, 10, 11]], [1, 1])
    data.save(tmp_path / "data.npz")
    out = tmp_path / "draft"
    distill(
        tiny_models("gpt2"),
        out,
        text=str(tmp_path / "text.txt"),
        data=str(tmp_path / "data.npz"),
        num_texts="20",
        steps="2",
    )
    written = Texts.load(out / "work" / "texts-00000.npz")
    record = json.loads((out / "distillation.json").read_text())
    assert record["num_texts"] > len(written) + len(data)
    assert all(text[0] == 1 for text in written)  # <|im_start|>, as the chat template begins


async def test_training_for_int8_leaves_leading_layers_the_targets_own(
    tmp_path: Path, questions: Path, tiny_models: Callable[..., Path]
) -> None:
    target, out = tiny_models("llama"), tmp_path / "draft"
    distill(target, out, "--int8", prompts=str(questions), layers="0-1", trained_layers="1")
    record = json.loads((out / "distillation.json").read_text())
    assert record["layers"] == [0, 1]
    assert record["losses"][-1] < record["losses"][0]
    drafted, original = (load_file(path / "model.safetensors") for path in (out, target))
    for name, weight in drafted.items():
        rounding = 0.51 / 127 * original[name].abs().max()
        is_own = torch.allclose(weight, original[name], rtol=0, atol=float(rounding))
        assert is_own == ("layers.1." not in name and name != "model.norm.weight"), name
    async with running_system(target, out, max_context_length=128) as system:
        alone = await system.generate("the cat", num_speculative_tokens=0, ignore_eos=True)
        text = await system.generate("the cat", num_speculative_tokens=4, ignore_eos=True)
    assert text.token_ids == alone.token_ids


def test_a_draft_made_before_is_trained_further(
    tmp_path: Path, questions: Path, tiny_models: Callable[..., Path]
) -> None:
    target, first, second = tiny_models("llama"), tmp_path / "first", tmp_path / "second"
    distill(target, first, prompts=str(questions), layers="1")
    further = {"prompts": str(questions), "start_from": str(first)}
    distill(target, second, **further)
    before, after = (json.loads((out / RECORD).read_text()) for out in (first, second))
    assert after["layers"] == [1]
    assert after["losses"][0] < 0.9 * before["losses"][0]
    for changes, message in (
        ({"layers": "0"}, "has the layers [1], and no others"),
        ({"start_from": str(target)}, "it has no distillation.json"),
    ):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            distill(target, tmp_path / "third", **{**further, **changes})
    with pytest.raises(ConfigurationError, match="the draft of another target"):
        distill(tiny_models("gpt2"), tmp_path / "third", **further)


FEATURES = {"kind": "eagle3", "steps": "60", "learning_rate": "1e-2", "unrolled_steps": "3"}


def feature_flags(target: Path, out: Path, **changes: str) -> list[str]:
    """Settings for a feature draft, without those of the other kind."""
    parts = flags(target, out, **FEATURES, **changes)
    at = parts.index("--num-layers")
    return parts[:at] + parts[at + 2 :]


@pytest.mark.process
async def test_a_feature_draft_learns_resumes_and_serves(
    tmp_path: Path, questions: Path, tiny_models: Callable[..., Path]
) -> None:
    target, whole, resumed = tiny_models("llama"), tmp_path / "whole", tmp_path / "resumed"
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("what does the cat say?\nwhere is the dog?\n")
    files = {"prompts": str(questions), "held_out_prompts": str(held_out)}
    run = CliRunner().invoke(main, feature_flags(target, whole, **files))
    assert run.exception is None, run.output
    record = json.loads((whole / RECORD).read_text())
    assert record["hidden_layers"] == [1]
    assert record["losses"][-1] < 0.7 * record["losses"][0]
    [[step, (*accepted, tokens_per_step)]] = record["held_out"]
    assert step == 60
    assert 1 >= accepted[0] >= accepted[1] >= accepted[2] >= 0
    assert tokens_per_step == pytest.approx(1 + sum(accepted), abs=1e-3)
    assert len(Texts.load(whole / "work" / "held-out-00000.npz")) == 2

    interrupted_after_first_checkpoint(feature_flags(target, resumed, **files), resumed)
    run = CliRunner().invoke(main, feature_flags(target, resumed, **files))
    assert run.exception is None, run.output
    weights, again = (load_file(out / "model.safetensors") for out in (whole, resumed))
    assert all(torch.equal(weights[name], again[name]) for name in weights)

    async with running_system(target, whole, max_context_length=128) as system:
        alone = await system.generate("the cat", num_speculative_tokens=0, ignore_eos=True)
        text = await system.generate(
            "the cat", num_speculative_tokens=3, prompt_lookup=False, ignore_eos=True
        )
    assert text.token_ids == alone.token_ids
    assert text.speculation.num_draft_tokens > 0

    further = feature_flags(target, tmp_path / "further", **files, start_from=str(whole))
    assert CliRunner().invoke(main, further).exception is None
    after = json.loads((tmp_path / "further" / RECORD).read_text())
    assert after["losses"][0] < 0.8 * record["losses"][0]


def test_a_feature_draft_to_start_from_must_fit(
    tmp_path: Path, tiny_models: Callable[..., Path]
) -> None:
    other = make_eagle3(tmp_path / "other", vocab_size=150)
    for start, message in (
        (tiny_models("llama"), "is no feature draft"),
        (other, "is the draft of another target"),
    ):
        parts = feature_flags(tiny_models("llama"), tmp_path / "draft", start_from=str(start))
        refused = CliRunner().invoke(main, parts).exception
        assert isinstance(refused, ConfigurationError)
        assert message in str(refused)


def test_settings_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    parts = flags(tmp_path, tmp_path / "draft", kind="eagle3")
    refused = CliRunner().invoke(main, parts)
    assert refused.exit_code == 2
    assert "--num-layers is of --kind layers" in refused.output
