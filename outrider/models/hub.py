"""Models of a hub, by their ids, downloaded to the hub client's cache."""

from pathlib import Path

from outrider.errors import ModelNotFound

# The files that a model is served from; repositories have others, too.
_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken")
_WEIGHTS = ("model.safetensors", "model-*.safetensors")
_TRUSTED = ("*.py", "pytorch_model*.bin")


def downloaded(model_id: str, trust_remote_code: bool = False) -> str:
    """The folder of a hub's model. The hub is asked once whether there is a newer version.

    Raises:
        ModelNotFound: no such model, or it is not cached and the hub cannot be reached.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    trusted = _TRUSTED if trust_remote_code else ()
    try:
        return snapshot_download(
            model_id, allow_patterns=[*_FILES, *_WEIGHTS, *trusted], ignore_patterns=["*/*"]
        )
    except HFValidationError:
        raise ModelNotFound(f"there is no folder or file {model_id!r}") from None
    except GatedRepoError:
        reason = f"access to {model_id} has to be granted at {constants.ENDPOINT}"
    except RepositoryNotFoundError:
        reason = f"{constants.ENDPOINT} has no model of that name, or none for you"
    except Exception as error:
        # Failures of the hub or the network, after which the client looks into its cache.
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        told = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        reason = f"{constants.ENDPOINT} cannot be asked for it: {told}"
    raise ModelNotFound(f"there is no folder {model_id!r}, and {reason}")


def revision_of(folder: str) -> str:
    """The hub's commit of a downloaded folder; "" for other folders."""
    path = Path(folder)
    return path.name if path.parent.name == "snapshots" else ""
