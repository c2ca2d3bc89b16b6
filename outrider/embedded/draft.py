"""The embedded default draft: a feature draft of the embedded target.

Its weights are in the package, but for the embedding, which is the target's and is added when the
draft is built, once. `outrider distill` trained it: README.md in this folder is its model card.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from outrider.embedded import EMBEDDED_DRAFT
from outrider.embedded.target import embedded_target
from outrider.engine.loading.weights import load_model
from outrider.models.cache import Progress, cache_folder, made_once, silent
from outrider.models.tokenizer_files import load_tokenizer

FILE = Path(__file__).with_name("draft.safetensors")

_EMBEDDING = "embed_tokens.weight"
_WEIGHTS, _CONFIG = "model.safetensors", "config.json"


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
    embedding = model.get_input_embeddings().weight.detach().half()
    save_file(load_file(file) | {_EMBEDDING: embedding}, folder / _WEIGHTS)
    with safe_open(file, framework="pt") as stored:
        (folder / _CONFIG).write_text(stored.metadata()["config"])
    load_tokenizer(target).save_pretrained(folder)


def pack(draft: Path, file: Path) -> None:
    """The reverse of `build`: packs the draft that `outrider distill` made into `file`."""
    weights = load_file(draft / _WEIGHTS)
    del weights[_EMBEDDING]
    save_file(weights, file, {"config": (draft / _CONFIG).read_text()})
