"""The embedded default draft: a part of the embedded target's layers, trained.

Weights that differ from the target's are in the package, as int8 with a scale for each
row; the others come from the target when the draft is built, once. `outrider distill`
trained it: README.md in this folder is its model card.
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from outrider.embedded import EMBEDDED_DRAFT
from outrider.embedded.target import embedded_target
from outrider.engine.cpu.int8_linear import row_scales
from outrider.engine.loading.draft_vocabulary import read_draft_vocabulary, write_draft_vocabulary
from outrider.engine.loading.weights import load_model
from outrider.models.cache import Progress, cache_folder, made_once, silent
from outrider.models.student import freeze, keep_layers
from outrider.models.tokenizer_files import load_tokenizer

FILE = Path(__file__).with_name("draft.safetensors")

_SCALES = ".scales"
_VOCABULARY = "draft_vocabulary"


def embedded_draft(progress: Progress = silent) -> Path:
    """The folder of the embedded draft, built first if it does not exist.

    Raises what `embedded_target` raises.
    """
    target = embedded_target(progress)
    return made_once(
        # A new file is a new draft, whatever its name.
        cache_folder() / f"{EMBEDDED_DRAFT}-{fingerprint(FILE)}-of-{target.name}",
        lambda folder: build(FILE, target, folder),
        f"{EMBEDDED_DRAFT}: building it from the target, once (some seconds)",
        progress,
    )


def fingerprint(file: Path) -> str:
    """A short hash of a file's content."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:12]


def build(file: Path, target: Path, folder: Path) -> None:
    """Writes the draft made of `file` and the model in `target` to `folder`."""
    model = load_model(str(target), torch.device("cpu"), torch.float32)
    with safe_open(file, framework="pt") as stored:
        keep_layers(model, json.loads(stored.metadata()["layers"]))
    weights = dequantized(load_file(file))
    vocabulary = weights.pop(_VOCABULARY).tolist()
    model.load_state_dict(weights, strict=False)
    model.save_pretrained(folder)
    load_tokenizer(target).save_pretrained(folder)
    write_draft_vocabulary(folder, vocabulary)


def pack(draft: Path, file: Path) -> None:
    """The reverse of `build`: packs the draft that `outrider distill` made into `file`."""
    record = json.loads((draft / "distillation.json").read_text())
    student = load_model(str(draft), torch.device("cpu"), torch.float32)
    freeze(student, record["recipe"]["trained_layers"])
    trained = {name: p.detach() for name, p in student.named_parameters() if p.requires_grad}
    vocabulary = torch.tensor(read_draft_vocabulary(str(draft)), dtype=torch.int32)
    tensors = quantized(trained) | {_VOCABULARY: vocabulary}
    save_file(tensors, file, {"layers": json.dumps(record["layers"])})


def quantized(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Matrices as int8 with a scale for each row; other tensors unchanged."""
    tensors = {}
    for name, weight in weights.items():
        tensors[name] = weight
        if weight.ndim == 2:
            scales = row_scales(weight).float()
            tensors[name] = (weight / scales[:, None]).round().to(torch.int8)
            tensors[name + _SCALES] = scales
    return tensors


def dequantized(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `quantized`, as float32."""
    return {
        name: tensor * tensors[name + _SCALES][:, None] if name + _SCALES in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_SCALES)
    }
