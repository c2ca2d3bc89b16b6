"""The acceptance rule of speculative decoding."""

from collections.abc import Sequence


def accept_matching(
    draft_token_ids: Sequence[int], target_token_ids: Sequence[int]
) -> tuple[int, int]:
    """Accepts draft tokens up to the first one that differs from the target's own choice.

    This is the rule for greedy decoding, and for sampling with shared noise, where the target's
    choice at an index is determined by the tokens before it.

    Args:
        draft_token_ids: k tokens that the draft proposed.
        target_token_ids: k + 1 tokens; entry i is the target's choice after the
            context and the first i draft tokens.

    Returns:
        How many draft tokens are accepted, and the target's choice after them:
        the recovered token if one was rejected, else the bonus token.
    """
    pairs = enumerate(zip(draft_token_ids, target_token_ids, strict=False))
    num_accepted = next((i for i, (draft, own) in pairs if draft != own), len(draft_token_ids))
    return num_accepted, target_token_ids[num_accepted]
