"""The embedded default pair: models that need no model hub, by name."""

from __future__ import annotations

from pathlib import Path

from outrider.embedded.cache import Progress, silent
from outrider.embedded.draft import EMBEDDED_DRAFT, embedded_draft
from outrider.embedded.target import EMBEDDED_TARGET, embedded_target
from outrider.errors import ModelNotFound

__all__ = ["EMBEDDED_DRAFT", "EMBEDDED_TARGET", "resolve_model"]


def resolve_model(name: str, progress: Progress = silent) -> str:
    """What transformers can load for `name`: a Hugging Face id or a folder.

    "default" stands for the embedded target, and so do the names of the embedded
    models for their folders, which are made first if need be; any other name is
    returned as it is.

    Raises:
        ModelNotFound: there is no such folder; or the package with the embedded weights is not
            installed, or cannot be read.
        ConfigurationError: the cache folder cannot be written.
    """
    if name in ("default", EMBEDDED_TARGET):
        return str(embedded_target(progress))
    if name == EMBEDDED_DRAFT:
        return str(embedded_draft(progress))
    if name.startswith((".", "/")) and not Path(name).is_dir():
        raise ModelNotFound(f"there is no folder {name}")
    return name
