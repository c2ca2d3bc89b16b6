#!/bin/sh
# transformers 5.23.0 (gguf 0.19.0): a tokenizer.json beside a GGUF file replaces the file's own.
#
# AutoTokenizer.from_pretrained(folder, gguf_file=NAME) reads the tokenizer out of the GGUF file,
# but only if the folder holds no tokenizer.json. If there is one, of whatever vocabulary, it is
# taken, and nothing is said of it. Model folders on hubs often hold both. Output seen:
#
#     alone                  ['▁a', '▁b', '▁c'] bos <s>
#     beside tokenizer.json  ['a', 'b', 'c'] bos None
#
# Exits with another status than 0 if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3 gguf==0.19.0 torch==2.13.0 sentencepiece protobuf
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from pathlib import Path

from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer

TOKENS = ["<unk>", "<s>", "</s>", "▁a", "▁b", "▁c", "▁", "a", "b", "c"]
TYPES = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL] + [TokenType.NORMAL] * 7


def write_vocabulary(path: Path) -> None:
    """A GGUF file without weights: settings of a small Llama, and a vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(32)
    writer.add_embedding_length(8)
    writer.add_block_count(1)
    writer.add_feed_forward_length(8)
    writer.add_head_count(1)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(TOKENS)
    writer.add_token_scores([0.0] * 3 + [-1.0] * 3 + [-2.0] * 4)
    writer.add_token_types(TYPES)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def write_other(path: Path) -> None:
    """The tokenizer of another model: single characters, no special tokens."""
    other = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate("abc ")}, merges=[]))
    other.pre_tokenizer = pre_tokenizers.Whitespace()
    other.save(str(path))


told = {}
for name in ("alone", "beside tokenizer.json"):
    folder = Path(name.replace(" ", "-"))
    folder.mkdir()
    write_vocabulary(folder / "model.gguf")
    if name != "alone":
        write_other(folder / "tokenizer.json")
    loaded = AutoTokenizer.from_pretrained(folder, gguf_file="model.gguf")
    told[name] = loaded.tokenize("a b c"), loaded.bos_token
    print(f"{name:23}{told[name][0]} bos {told[name][1]}")
sys.exit(told["alone"] == told["beside tokenizer.json"] or told["alone"][1] != "<s>")
PYTHON
