"""The embedded default pair: models that need no model hub, by name."""

from pathlib import Path

from outrider.embedded.target import EMBEDDED_TARGET, embedded_target
from outrider.errors import ModelNotFound
from outrider.models.cache import Progress, silent
from outrider.models.hub import downloaded

__all__ = ["EMBEDDED_DRAFT", "EMBEDDED_TARGET", "resolve_model"]

EMBEDDED_DRAFT = "smollm2-135m-draft"


def resolve_model(name: str, progress: Progress = silent, trust_remote_code: bool = False) -> str:
    """The folder of the model that `name` stands for.

    "default" is the embedded target. The embedded models, by their names, and GGUF files
    are converted to folders first; any other name is a folder, or the id of a model on a
    hub, which is downloaded.

    Args:
        trust_remote_code: whether to download code and pickles, too.

    Raises:
        ModelNotFound: there is no model of that name, the package with the embedded weights
            is not installed, or files cannot be read.
        UnsupportedModel: a GGUF file of a kind that is not known.
        ConfigurationError: the cache folder cannot be written.
    """
    if name in ("default", EMBEDDED_TARGET):
        return str(embedded_target(progress))
    if name == EMBEDDED_DRAFT:
        # Imports torch, which takes seconds and is not needed for other names.
        from outrider.embedded.draft import embedded_draft

        return str(embedded_draft(progress))
    path = Path(name)
    if path.is_dir():
        return name
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelNotFound(f"{name} is a file, and neither a folder nor a GGUF file")
        from outrider.gguf import gguf_folder

        return str(gguf_folder(path, progress))
    if name.startswith((".", "/", "~")) or path.suffix == ".gguf":
        raise ModelNotFound(f"there is no folder or file {name}")
    return downloaded(name, trust_remote_code)
