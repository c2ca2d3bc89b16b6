"""The tokenizer that a GGUF file describes.

transformers reads the vocabulary, but splits texts as the class that it picks does. The file
names the splitting (`tokenizer.ggml.pre`); llama.cpp's meaning of the names is here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from outrider.errors import UnsupportedModel

_WORD = r"[^\r\n\p{L}\p{N}]?"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


@dataclass(frozen=True)
class Splitting:
    """How a byte-level tokenizer splits texts before it merges bytes."""

    pattern: str | None = None
    """The regular expression; None: GPT-2's, which is built in."""
    single_digits: bool = False
    ignores_merges: bool = False
    """Whether a part that is a token as a whole becomes that token, whatever merges give."""
    adds_bos: bool = False
    """Whether BOS is added, unless the file says otherwise."""
    normalizes: bool = False

    def apply(self, tokenizer: Tokenizer) -> None:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                *([pre_tokenizers.Digits(individual_digits=True)] if self.single_digits else []),
                *([pre_tokenizers.Split(Regex(self.pattern), "isolated")] if self.pattern else []),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not self.pattern),
            ]
        )
        tokenizer.normalizer = normalizers.NFC() if self.normalizes else None
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.model.ignore_merges = self.ignores_merges


_LLAMA3 = Splitting(
    rf"{_ENDING}|{_WORD}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ignores_merges=True,
    adds_bos=True,
)
_QWEN2 = Splitting(
    rf"{_ENDING}|{_WORD}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",
    normalizes=True,
)
SPLITTINGS = {
    "gpt-2": Splitting(),
    "smollm": Splitting(single_digits=True),
    "llama-bpe": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": Splitting(
        rf"{_WORD}{_UPPER}*{_LOWER}+|{_WORD}{_UPPER}+{_LOWER}*|\p{{N}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
        ignores_merges=True,
        adds_bos=True,
    ),
}


def read_tokenizer(file: Path, metadata: Mapping[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer of a GGUF file, and its chat template.

    Raises:
        UnsupportedModel: the kind of tokenizer or of splitting is unknown; the message names it.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise UnsupportedModel(f"its tokenizer {kind!r} is not known, only gpt2 and llama are")
    name: Any = metadata.get("tokenizer.ggml.pre")
    if kind == "gpt2" and name not in SPLITTINGS:
        raise UnsupportedModel(
            f"its pre-tokenizer {name!r} is not known, only {', '.join(SPLITTINGS)} are"
        )
    splitting = SPLITTINGS[name] if kind == "gpt2" else None
    # Alone in a folder: a tokenizer.json there would be read instead.
    with TemporaryDirectory() as folder:
        (Path(folder) / file.name).symlink_to(file.resolve())
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, gguf_file=file.name
        )
    backend = tokenizer.backend_tokenizer
    if splitting is not None:
        splitting.apply(backend)
    elif metadata["general.architecture"] == "llama":
        _as_sentencepiece(backend, metadata.get("tokenizer.ggml.add_space_prefix", True))
    default = splitting.adds_bos if splitting else True
    bos = tokenizer.bos_token
    adds_bos = bos is not None and metadata.get("tokenizer.ggml.add_bos_token", default)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A" if adds_bos else "$A",
        special_tokens=[(bos, tokenizer.bos_token_id)] if adds_bos else [],
    )
    return tokenizer


def _as_sentencepiece(tokenizer: Tokenizer, adds_space: bool) -> None:
    """Adds spaces like Llama 2's tokenizer: one before a text, and behind special tokens."""
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if adds_space else []), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = None
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if adds_space else []),
        ]
    )
