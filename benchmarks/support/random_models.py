"""Models with random weights, of real sizes or next to none, and a tokenizer of bytes."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from outrider.engine.device import choose_device, choose_dtype


def pair_configs(name: str) -> tuple[PretrainedConfig, PretrainedConfig]:
    """Target and draft."""

    def neox(hidden: int, layers: int, heads: int) -> PretrainedConfig:
        return GPTNeoXConfig(hidden_size=hidden, num_hidden_layers=layers, vocab_size=50304,
                             num_attention_heads=heads, intermediate_size=4 * hidden)  # fmt: skip

    def llama(hidden: int, layers: int, inner: int, **others: Any) -> PretrainedConfig:
        return LlamaConfig(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner,
                           num_attention_heads=32, num_key_value_heads=8, vocab_size=128256,
                           max_position_embeddings=8192, **others)  # fmt: skip

    pairs = {
        "pythia": lambda: (neox(2048, 24, 16), neox(768, 12, 12)),  # 1.4B and 160M
        "llama": lambda: (  # 3.1-8B and 3.2-1B
            llama(4096, 32, 14336),
            llama(2048, 16, 8192, tie_word_embeddings=True),
        ),
        "tiny": lambda: (neox(64, 3, 4), neox(32, 1, 2)),  # to try the command
    }
    return pairs[name]()


PRINTABLE = 94
"""How many of the first tokens are printable characters of ASCII."""


def toy_config() -> PretrainedConfig:
    """Two layers that cost next to nothing. All tokens are printable."""
    return LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                       num_attention_heads=4, num_key_value_heads=2,
                       max_position_embeddings=2048, vocab_size=PRINTABLE,
                       bos_token_id=None, eos_token_id=None)  # fmt: skip


def build(
    config: PretrainedConfig,
    parent: Path,
    dtype: str,
    device: str,
    name: str,
    decides: bool = False,
) -> str:
    """A random model with a tokenizer of bytes; returns its folder.

    Args:
        decides: each token has one successor by far, whatever stands before it: the next one.
    """
    torch.manual_seed(0)
    where = choose_device(device)
    with where:
        model = AutoModelForCausalLM.from_config(config, dtype=choose_dtype(dtype, where))
    if decides:
        with torch.no_grad():
            table = model.get_input_embeddings().weight
            model.get_output_embeddings().weight.copy_(table.roll(1, 0))
            table.mul_(100)  # what layers add to it is little then
    folder = parent / name
    model.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[: config.vocab_size]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return str(folder)
