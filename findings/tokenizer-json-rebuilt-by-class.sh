#!/bin/sh
# transformers 5.23.0 (tokenizers 0.23.3): AutoTokenizer does not use a tokenizer.json as it is.
#
# Where tokenizer_config.json names a class with an `__init__` (GPT2Tokenizer, Qwen2Tokenizer), or
# the family prescribes one, only vocabulary, merges and post-processor are taken from the file;
# normalizer, pre-tokenizer and decoder are the class's. Nothing is said of it, and the ids of the
# same text differ from those of `tokenizers.Tokenizer.from_file`. Output seen:
#
#     llama   GPT2Tokenizer            file ['ĊĊ', 'hello']  AutoTokenizer ['Ċ', 'Ċ', 'hello']
#     qwen2   PreTrainedTokenizerFast  file ['2023']         AutoTokenizer ['2', '0', '2', '3']
#     llama   PreTrainedTokenizerFast  file ['ĊĊ', 'hello']  AutoTokenizer ['ĊĊ', 'hello']
#
# Exits with another status than 0 if that is no longer so.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    transformers==5.23.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

SAMPLES = ("\n\nhello", "2023")
CASES = (
    ("llama", "GPT2Tokenizer", 0, True),
    ("qwen2", "PreTrainedTokenizerFast", 1, True),
    ("llama", "PreTrainedTokenizerFast", 0, False),
)

as_expected = True
for model_type, class_name, sample, differs in CASES:
    folder = Path(f"{model_type}-{class_name}")
    folder.mkdir()
    stored = Tokenizer(models.BPE())
    stored.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n+|\p{N}+|\p{L}+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    stored.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False
    )
    stored.train_from_iterator(SAMPLES * 9, trainer)
    stored.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": class_name}))
    text = SAMPLES[sample]
    loaded = AutoTokenizer.from_pretrained(folder)
    told = stored.encode(text).tokens, loaded.tokenize(text)
    print(f"{model_type:8}{class_name:25}file {told[0]}  AutoTokenizer {told[1]}")
    as_expected &= (told[0] != told[1]) == differs
sys.exit(0 if as_expected else 1)
PYTHON
