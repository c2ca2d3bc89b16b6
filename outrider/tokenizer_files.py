"""The tokenizer's journey from a model's files to an orchestrator without them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from outrider.errors import ModelNotFound, UnsupportedModel
from outrider.messages import TokenizerFiles

CHUNK_SIZE = 1 << 20

_LONGEST_REASON = 300  # characters of what transformers says


def read_tokenizer(model: str) -> TokenizerFiles:
    """The tokenizer of a Hugging Face id or a local folder.

    Raises:
        ModelNotFound: there is none, or its files cannot be read.
        UnsupportedModel: it is not a fast tokenizer.
    """
    from transformers import AutoTokenizer

    if Path(model).is_absolute() and not Path(model).is_dir():
        raise ModelNotFound(f"there is no folder {model!r}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except Exception as error:
        # Broken files come out of the parser as almost any exception.
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        raise ModelNotFound(f"cannot load the tokenizer of {model!r}: {reason}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModel(f"{model}: its tokenizer has no tokenizer.json (a fast tokenizer)")
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return TokenizerFiles(backend.to_str(), _default_template(tokenizer), special_tokens)


def _default_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def to_bytes(files: TokenizerFiles) -> bytes:
    """The document that GetTokenizer sends in pieces."""
    document = {
        "tokenizer": json.loads(files.tokenizer_json),
        "chat_template": files.chat_template,
        "special_tokens": files.special_tokens,
    }
    return json.dumps(document, ensure_ascii=False).encode()


def from_bytes(data: bytes) -> TokenizerFiles:
    """The inverse of `to_bytes`."""
    document = json.loads(data)
    return TokenizerFiles(
        json.dumps(document["tokenizer"], ensure_ascii=False),
        document["chat_template"],
        document["special_tokens"],
    )


def chunks(data: bytes, size: int = CHUNK_SIZE) -> list[bytes]:
    """Pieces of at most `size` bytes."""
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


def vocabulary_fingerprint(tokenizer_json: str) -> str:
    """SHA-256 over the (id, token) pairs, added tokens included, in the order of ids."""
    vocab = Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    digest = hashlib.sha256()
    for token, token_id in sorted(vocab.items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{token_id}\0{token}\0".encode())
    return digest.hexdigest()
