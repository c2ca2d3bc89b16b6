"""Tokenizers: from a model's files, and as a document for orchestrators, which lack these."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from outrider.errors import ModelNotFound, UnsupportedModel
from outrider.models.chat_template import ChatTemplate
from outrider.protocol.messages import TokenizerFiles

CHUNK_SIZE = 1 << 20

# Files of which any makes a tokenizer.
_FILES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json")
_LONGEST_REASON = 300  # characters of transformers' message


def read_tokenizer(folder: str, trust_remote_code: bool = False) -> TokenizerFiles:
    """The tokenizer of a model's folder.

    Raises what `load_tokenizer` raises, and UnsupportedModel if it is not a fast tokenizer.
    """
    tokenizer = load_tokenizer(folder, trust_remote_code)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedModel(f"{folder}: its tokenizer has no tokenizer.json (a fast tokenizer)")
    special_tokens = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return TokenizerFiles(backend.to_str(), _default_template(tokenizer), special_tokens)


def load_tokenizer(folder: str | Path, trust_remote_code: bool = False) -> Any:
    """transformers' tokenizer of a model's folder, which follows tokenizer.json.

    Loaded by the class that a folder names, a tokenizer may split texts as that class does, or
    add BOS by settings of other files, whatever tokenizer.json says.

    Raises:
        ModelNotFound: there is no tokenizer, or its files cannot be read.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    path = Path(folder)
    if not path.is_dir():
        raise ModelNotFound(f"there is no folder {str(folder)!r}")
    if not any(file for pattern in _FILES for file in path.glob(pattern)):
        raise ModelNotFound(f"{folder} has no tokenizer: no tokenizer.json")
    file = path / "tokenizer.json"
    try:
        if not file.is_file():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        as_stored = Tokenizer.from_file(str(file))
    except Exception as error:
        # For broken files the parser raises almost any exception.
        reason = " ".join(str(error).split())[:_LONGEST_REASON] or type(error).__name__
        if not file.is_file():
            reason = f"it has no tokenizer.json, and none can be made of its other files ({reason})"
        raise ModelNotFound(f"cannot load the tokenizer of {str(folder)!r}: {reason}") from error
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        setattr(tokenizer.backend_tokenizer, part, getattr(as_stored, part))
    return tokenizer


def _default_template(tokenizer: Any) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) else None


def turn_end_ids(files: TokenizerFiles) -> tuple[int, ...]:
    """The token with which the chat template ends an assistant's turn; () without one."""
    template = ChatTemplate.of(files)
    if template is None:
        return ()
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    ids = tokenizer.encode(template.end_of_turn().lstrip(), add_special_tokens=False).ids
    return tuple(ids[:1]) if ids[:1] and ids[0] in tokenizer.get_added_tokens_decoder() else ()


def check_vocabulary(name: str, files: TokenizerFiles, vocab_size: int) -> None:
    """Checks that a model has embeddings for its tokenizer's tokens, except added ones.

    Raises:
        ModelNotFound: the tokenizer is another model's.
    """
    vocab = Tokenizer.from_str(files.tokenizer_json).get_vocab(with_added_tokens=False)
    num_tokens = 1 + max(vocab.values(), default=-1)
    if not 0 < num_tokens <= vocab_size:
        raise ModelNotFound(
            f"the tokenizer of {name!r} is not that of its model: it has {num_tokens} tokens, "
            f"and the model {vocab_size}"
        )


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
