"""Reads the files in a model's folder, and refuses models that are not supported."""

import json
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from outrider.errors import ModelNotFound, UnsupportedModel

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_LFS_POINTER = b"version https://git-lfs"
_LONGEST_REASON = 300  # characters of transformers' message

# Settings of generation_config.json, besides those of sampling and of the end, that change what
# transformers generates, with the values that change nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "stop_strings", "watermarking_config"), ()),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty", "dola_layers"), ()),
    **dict.fromkeys(("no_repeat_ngram_size", "min_length", "min_new_tokens"), (0,)),
    **dict.fromkeys(("repetition_penalty", "guidance_scale", "num_beams"), (1,)),
}


def read_config(folder: str, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of the model in `folder`.

    Raises:
        ModelNotFound: there is no such folder, no model in it, or its config.json is broken.
        UnsupportedModel: the model is quantised, pickled or an adapter, comes with code, or is
            not a causal language model.
    """
    settings = read_settings(folder)
    _refuse_quantised(folder, settings)
    if (Path(folder) / "adapter_config.json").is_file():
        raise UnsupportedModel(f"{folder} has an adapter, which is not served: merge it first")
    if not trust_remote_code:
        _refuse_code(folder, settings)
        refuse_pickles(folder)
    _refuse_pointers(folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        # Configurations check themselves, with various exceptions.
        raise ModelNotFound(f"cannot read {folder}/config.json: {told(error)}") from error
    if not trust_remote_code and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModel(
            f"{folder}: of {config.model_type!r} transformers has no causal language model"
        )
    return config


def read_settings(folder: str, name: str = "config.json") -> dict[str, Any]:
    """The content of a JSON file of settings. Raises ModelNotFound."""
    path = Path(folder)
    if not path.is_dir():
        raise ModelNotFound(f"there is no folder {folder!r}")
    try:
        settings = json.loads((path / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        found = ", ".join(sorted(file.name for file in path.glob("*.gguf")))
        hint = f"; it has {found}, and a GGUF file can be named itself" if found else ""
        raise ModelNotFound(f"{folder} holds no model: it has no {name}{hint}") from None
    except (OSError, ValueError) as error:
        raise ModelNotFound(f"cannot read {folder}/{name}: {error}") from error
    if not isinstance(settings, dict):
        raise ModelNotFound(f"cannot read {folder}/{name}: it is no JSON object")
    return settings


def is_eagle3(folder: str) -> bool:
    """Whether the model is a feature draft in an EAGLE-3 layout. Raises ModelNotFound."""
    settings = read_settings(folder)
    names = _as_list(settings.get("architectures"))
    return settings.get("speculators_model_type") == "eagle3" or any(
        "eagle3" in str(name).lower() for name in names
    )


def tokenizer_folder(folder: str) -> str:
    """The folder with the model's tokenizer. A draft may name a target whose tokenizer it uses.

    Raises ModelNotFound.
    """
    named = read_settings(folder).get("speculators_config")
    verifier = named.get("verifier") if isinstance(named, dict) else None
    target = verifier.get("name_or_path") if isinstance(verifier, dict) else None
    if (Path(folder) / "tokenizer.json").is_file() or not isinstance(target, str):
        return folder
    return target if Path(target).is_dir() else folder


def eos_token_ids(folder: str, config: Any, vocab_size: int) -> tuple[int, ...]:
    """Tokens that end a text, by generation_config.json and config.json.

    Args:
        config: its defaults are used if neither file names any.

    Raises:
        ModelNotFound: a file cannot be read.
    """
    settings = read_settings(folder)
    text = settings.get("text_config")
    named = [generation_settings(folder), settings, text if isinstance(text, dict) else {}]
    ids = [token_id for part in named for token_id in _as_list(part.get("eos_token_id"))]
    if strange := [one for one in ids if not isinstance(one, int)]:
        raise ModelNotFound(f"{folder} names an eos_token_id that is none: {strange[0]!r}")
    ids = ids or _as_list(getattr(config, "eos_token_id", None))
    return tuple(dict.fromkeys(one for one in ids if 0 <= one < vocab_size))


def generation_settings(folder: str) -> dict[str, Any]:
    """The content of generation_config.json; {} without one. Raises ModelNotFound."""
    exists = (Path(folder) / "generation_config.json").is_file()
    return read_settings(folder, "generation_config.json") if exists else {}


def settings_not_applied(folder: str) -> list[str]:
    """Settings in generation_config.json that Outrider ignores. Raises ModelNotFound."""
    settings = generation_settings(folder)
    return [
        f"{name} {settings[name]}"
        for name, neutral in _NEUTRAL.items()
        if settings.get(name) not in (None, [], *neutral)
    ]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def told(error: Exception) -> str:
    """An exception's message in one line, with its class if it is not meant for users."""
    text = " ".join(str(error).split())[:_LONGEST_REASON]
    if text and isinstance(error, OSError | ValueError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _refuse_quantised(folder: str, settings: dict[str, Any]) -> None:
    text = settings.get("text_config")
    for part in (settings, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config", "quantization"):
            if part.get(key):
                method = part[key].get("quant_method", key) if isinstance(part[key], dict) else key
                raise UnsupportedModel(
                    f"{folder} is quantised ({method}), which is not served: take the model "
                    "that was quantised, or a GGUF file of it"
                )


def _refuse_code(folder: str, settings: dict[str, Any]) -> None:
    """Refuses a folder's code, unless transformers has the family, and runs its own instead."""
    brought = settings.get("auto_map")
    if brought and settings.get("model_type") not in CONFIG_MAPPING:
        modules = brought.values() if isinstance(brought, dict) else ()
        files = sorted({f"{str(one).split('--')[-1].split('.')[0]}.py" for one in modules})
        raise UnsupportedModel(
            f"{folder} comes with code ({', '.join(files)}), which runs only with "
            "--trust-remote-code"
        )


def _refuse_pointers(folder: str) -> None:
    for path in sorted(Path(folder).glob("*.safetensors")):
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(_LFS_POINTER)) == _LFS_POINTER:
                    raise ModelNotFound(f"{path} is a pointer to what `git lfs pull` would fetch")


def refuse_pickles(folder: str) -> None:
    path = Path(folder)
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise UnsupportedModel(
            f"the weights in {folder} are pickles ({pickles[0]}), which can run code when they "
            "are read; that is done only with --trust-remote-code"
        )
    raise ModelNotFound(f"{folder} has no weights: no model.safetensors")
