"""Drafts that propose only a part of the vocabulary.

The head accounts for much of a small draft's cost, and most of its rows are for tokens that hardly
ever occur. A file `draft_vocabulary.json` in the model's folder lists the tokens to keep. The draft
never proposes others, which lowers the acceptance rate a little and changes nothing else. (FR-Spec,
arXiv 2502.14856; VocabTrim, arXiv 2506.22694.)
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from outrider.errors import ModelNotFound, UnsupportedModel

FILE_NAME = "draft_vocabulary.json"


def read_draft_vocabulary(model: str) -> list[int] | None:
    """The token ids of a model's draft vocabulary, ascending; None for the whole vocabulary.

    Raises:
        ModelNotFound: the file cannot be read.
    """
    path = cached_file(
        model,
        FILE_NAME,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return None
    try:
        token_ids = json.loads(Path(path).read_text())["token_ids"]
        return sorted({int(token_id) for token_id in token_ids})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelNotFound(f"cannot read {path}: {error}") from error


def write_draft_vocabulary(folder: Path, token_ids: Sequence[int]) -> None:
    """Makes the model in `folder` a draft that proposes only these tokens."""
    (folder / FILE_NAME).write_text(json.dumps({"token_ids": sorted(token_ids)}))


def trim_head(model: Any, token_ids: Sequence[int] | None) -> Tensor:
    """Keeps the head's rows for `token_ids`, and returns the token of each remaining row.

    Raises:
        UnsupportedModel: a token is not in the head, or the head is not a linear layer.
    """
    head = model.get_output_embeddings()
    if token_ids is None:
        return torch.arange(head.out_features, device=model.device)
    if not isinstance(head, nn.Linear) or not token_ids or token_ids[-1] >= head.out_features:
        raise UnsupportedModel(f"{FILE_NAME} does not fit the model's head")
    kept = torch.tensor(token_ids, device=head.weight.device)
    trimmed = nn.Linear(head.in_features, len(kept), head.bias is not None, device="meta")
    trimmed.weight = nn.Parameter(head.weight[kept], requires_grad=False)
    if head.bias is not None:
        trimmed.bias = nn.Parameter(head.bias[kept], requires_grad=False)
    model.set_output_embeddings(trimmed)
    return kept
