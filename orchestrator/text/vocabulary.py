"""Whether draft and target share a vocabulary."""

from collections.abc import Mapping

from outrider.errors import VocabularyMismatch
from outrider.protocol.messages import ModelInfo


def check_compatible(
    target: ModelInfo,
    draft: ModelInfo,
    target_vocab: Mapping[str, int],
    draft_vocab: Mapping[str, int],
) -> None:
    """Checks that each id in both vocabularies is the same token in both.

    Ids of only one vocabulary are allowed, since model families pad or extend theirs differently.
    The loop never sends them to the other model.

    Args:
        target_vocab, draft_vocab: the id of each token.

    Raises:
        VocabularyMismatch: an id has two meanings; the message names both models and the id.
    """
    target_tokens = {token_id: token for token, token_id in target_vocab.items()}
    draft_tokens = {token_id: token for token, token_id in draft_vocab.items()}
    shared = target_tokens.keys() & draft_tokens.keys()
    different = sorted(i for i in shared if target_tokens[i] != draft_tokens[i])
    if not different:
        return
    first = different[0]
    raise VocabularyMismatch(
        f"the draft {draft.model_id} and the target {target.model_id} have different vocabularies: "
        f"{len(different)} of {len(shared)} shared ids differ; id {first} is "
        f"{draft_tokens[first]!r} for the draft and {target_tokens[first]!r} for the target"
    )
