"""Models in GGUF files, converted once into folders of safetensors and a tokenizer.json."""

import hashlib
from pathlib import Path

from outrider.models.cache import Progress, cache_folder, made_once, silent

# To be raised when `convert` changes, so that old folders are not reused.
FORMAT = 1


def gguf_folder(file: Path, progress: Progress = silent) -> Path:
    """The folder of a converted GGUF file, made first if it does not exist.

    Raises what `convert` raises, and ConfigurationError if the cache cannot be written.
    """
    from outrider.gguf.convert import convert

    status = file.stat()
    identity = f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return made_once(
        cache_folder() / f"{file.stem}-{digest}-{FORMAT}",
        lambda folder: convert(file, folder),
        f"{file.name}: converting it, once (a minute for each billion of weights)",
        progress,
    )
