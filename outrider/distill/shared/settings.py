"""The settings of a distillation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORD = "distillation.json"

KINDS = ("layers", "eagle3")

# Of the settings that each kind has alone, and of those that suit it otherwise.
DEFAULTS: dict[str, dict[str, Any]] = {
    "layers": {
        "layers": (),
        "num_layers": 12,
        "trained_layers": None,
        "refit_texts": 96,
        "draft_vocabulary": 16384,
        "batch_size": 16,
        "learning_rate": 6e-4,
    },
    "eagle3": {
        "read": (),
        "unrolled_steps": 4,
        "draft_vocabulary": 8192,
        "batch_size": 8,
        "learning_rate": 3e-3,
    },
}


@dataclass(frozen=True)
class Recipe:
    """The settings of `outrider distill`; see its flags."""

    kind: str
    target: str
    out: Path
    num_texts: int
    prompts: Path | None
    held_out_prompts: Path | None
    text: Path | None
    data: Path | None
    temperatures: tuple[float, ...]
    start_from: Path | None
    int8: bool
    draft_vocabulary: int
    steps: int
    batch_size: int
    learning_rate: float
    max_length: int
    checkpoint_every: int
    seed: int
    device: str
    dtype: str
    threads: int | None
    layers: tuple[int, ...] = ()
    num_layers: int = 12
    trained_layers: int | None = None
    refit_texts: int = 96
    read: tuple[int, ...] = ()
    unrolled_steps: int = 4
