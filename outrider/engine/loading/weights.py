"""Loads a model's weights, and refuses weights that do not match its configuration exactly."""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers.utils import logging

from outrider.engine.loading.model_folder import read_config, told
from outrider.engine.tensor_parallel import Ranks
from outrider.errors import ModelNotFound, UnsupportedModel

_KINDS = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_EIGHT_BITS = ("I8", "U8", "F8_E4M3", "F8_E5M2")
_NUM_NAMED = 3  # at most so many keys of a kind in an error
# Masks and angles that old checkpoints store and models compute.
_COMPUTED = re.compile(
    r"\.(attn|attention)\.(attention\.)?(bias|masked_bias|causal_mask)$|rotary_emb\.inv_freq$"
)


def load_model(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    ranks: Ranks | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Loads the causal language model in a folder for inference.

    Args:
        ranks: the processes that it is split among, if it is.
        trust_remote_code: whether code in the folder may be run, and pickles be read.

    Raises:
        ModelNotFound: the files cannot be read, or do not match the configuration.
        UnsupportedModel: weights are quantised or pickled, the folder has code or is an adapter,
            or the model cannot be split among `ranks`.
    """
    from transformers import AutoModelForCausalLM  # takes 90 MB

    config = read_config(name, trust_remote_code)
    split = ranks.loading(config) if ranks else {}
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    try:
        with _quiet():
            model, loaded = load(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                use_safetensors=None if trust_remote_code else True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # which we refuse ourselves
                **split,
            )
    except Exception as error:
        # For broken files transformers raises almost any exception.
        raise ModelNotFound(f"cannot load the model {name!r}: {told(error)}") from error
    check_complete(name, loaded)
    kinds = _stored_kinds(name)
    if ranks is None and (not kinds or _KINDS.get(dtype) in kinds):  # others were converted
        leave_file(model)
    return model.eval().requires_grad_(False).to(device)


def leave_file(model: nn.Module) -> None:
    """Copies weights out of a memory-mapped file, all of which uses memory while any is in use."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def check_complete(name: str, loaded: dict[str, Collection[Any]]) -> None:
    """Checks that a checkpoint has every weight of the model, in the right shape, and no others.

    transformers would initialize missing weights at random, and ignore surplus ones.

    Args:
        loaded: the info of `from_pretrained` with `output_loading_info`.

    Raises:
        ModelNotFound: a weight is missing, surplus or has another shape; the message names some.
    """
    unexpected = [key for key in loaded["unexpected_keys"] if not _COMPUTED.search(key)]
    shapes = [
        f"{key} {list(shape)} instead of {list(expected)}"
        for key, shape, expected in loaded["mismatched_keys"]
    ]
    faults = [
        f"{kind}: {_some(keys)}"
        for kind, keys in (
            ("missing", loaded["missing_keys"]),
            ("not in the model", unexpected),
            ("of another shape", shapes),
        )
        if keys
    ]
    if faults:
        raise ModelNotFound(
            f"the weights of {name!r} do not fit its config.json; {'; '.join(faults)}"
        )


def _stored_kinds(name: str) -> set[str]:
    """The types of a folder's weights, as safetensors names them.

    Refuses weights in 8 bits, which are quantised even if config.json does not say so.
    """
    kinds: set[str] = set()
    for path in sorted(Path(name).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                kind = file.get_slice(key).get_dtype()
                if kind in _EIGHT_BITS and not _COMPUTED.search(key):
                    raise UnsupportedModel(
                        f"{name} is quantised ({key} is {kind}), which is not served"
                    )
                kinds.add(kind)
    return kinds


def _some(keys: Collection[str]) -> str:
    named = ", ".join(sorted(keys)[:_NUM_NAMED])
    others = len(keys) - _NUM_NAMED
    return f"{named} and {others} more" if others > 0 else named


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars and reports: the service has its own."""
    logging.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
