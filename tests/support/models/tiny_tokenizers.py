"""Tokenizers for tiny models. Without torch."""

from __future__ import annotations

from pathlib import Path

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = """the cat sat on the mat and the dog sat on the log while the rain fell on the roof
a tokenizer splits a text into tokens and a model gives each of them a probability
speculation pays when the draft is right more often than it is slow
do not count your chickens before they hatch, said the farmer to the fox
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_tokenizer(
    folder: Path,
    text: str = TEXT,
    bos: bool = False,
    template: str | None = CHAT_TEMPLATE,
    vocab_size: int = 300,
) -> int:
    """Saves a byte-level BPE tokenizer of at most `vocab_size` tokens; returns how many it has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


WORDS = ["<unk>", "▁", "▁the", "▁cat", "▁sat", "s", "t", "▁on"]


def sentencepiece(prepends: bool, num_bytes: int = 256) -> Tokenizer:
    """A tokenizer of words with a leading "▁", and single bytes for what is no word.

    prepends: the first "▁" comes from a normalizer, as in Llama 2's own files; else from the
        pre-tokenizer, and bytes are not decoded.
    """
    tokens = WORDS + [f"<0x{byte:02X}>" for byte in range(num_bytes)]
    vocab = [(token, -1.0) for token in tokens]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=num_bytes == 256))
    if prepends:
        spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(spaces)
        strip = decoders.Strip(content=" ", left=1)
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
        tokenizer.decoder = decoders.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
    return tokenizer
