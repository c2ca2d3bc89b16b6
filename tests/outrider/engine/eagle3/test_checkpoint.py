"""Which EAGLE-3 checkpoints are read, and why others are not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.engine.eagle3.checkpoint import Eagle3Model, read_eagle3
from outrider.engine.loading.model_folder import is_eagle3
from outrider.errors import ModelNotFound, UnsupportedModel
from tests.support.models.eagle3 import make_eagle3


def read(folder: str, **settings: Any) -> Eagle3Model:
    return read_eagle3(folder, torch.device("cpu"), torch.float32, **settings)


def edited(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> str:
    """A draft whose weights were edited."""
    make_eagle3(folder)
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def test_both_layouts_are_recognised(tmp_path: Path, tiny_models: Callable[..., Path]) -> None:
    assert is_eagle3(str(make_eagle3(tmp_path / "speculators")))
    assert is_eagle3(str(make_eagle3(tmp_path / "original", is_original=True)))
    assert not is_eagle3(str(tiny_models("llama")))


def test_the_original_layout_holds_the_same(tmp_path: Path) -> None:
    one = read(str(make_eagle3(tmp_path / "speculators")))
    other = read(str(make_eagle3(tmp_path / "original", is_original=True)))
    for name, weight in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], weight), name
    assert one.settings.layer_ids == other.settings.layer_ids == (0, 1)
    assert one.settings.feature_size == 64
    assert one.settings.norms_each


def test_layers_may_be_left_to_the_usual_three(tmp_path: Path) -> None:
    folder = make_eagle3(tmp_path, is_original=True, layer_ids=[0, 1, 1])
    settings = json.loads((folder / "config.json").read_text())
    del settings["eagle_config"]
    (folder / "config.json").write_text(json.dumps(settings))
    assert read(str(folder)).settings.layer_ids == ()


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda w: w.pop("embed_tokens.weight"), "lacks embed_tokens.weight: add the target's"),
        (lambda w: w.pop("norm.weight"), "missing: norm.weight"),
        (lambda w: w.update(other=torch.ones(1)), "not in the model: other"),
        (lambda w: w.update({"norm.weight": torch.ones(3)}), "norm.weight .3. instead of .64."),
        (lambda w: w.pop("d2t"), "lacks d2t"),
        (lambda w: w.update(d2t=torch.zeros(3, dtype=torch.long)), "3 entries instead of 100"),
        (lambda w: w.update(d2t=-torch.arange(100)), "names tokens twice"),
        (lambda w: w["d2t"].add_(1000), "outside of the vocabulary"),
        (lambda w: w["t2d"].logical_not_(), "d2t and t2d name different tokens"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    edit: Callable[[dict[str, Tensor]], Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFound, match=reason):
        read(edited(tmp_path, edit))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "gpt2"}, "layers of the family 'gpt2'"),
        ({"hidden_act": "gelu"}, "with gelu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
            "dynamic rotary",
        ),
    ],
)
def test_layers_of_other_kinds_are_refused(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = make_eagle3(tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    settings["transformer_layer_config"] |= change
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UnsupportedModel, match=reason):
        read(str(folder))


def test_pickles_are_read_only_if_trusted(tmp_path: Path) -> None:
    folder = make_eagle3(tmp_path)
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UnsupportedModel, match="pickles"):
        read(str(folder))
    assert read(str(folder), trust_remote_code=True).settings.draft_vocab_size == 100
