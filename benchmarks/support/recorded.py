"""Recorded texts of the target, for a draft that replays them with a chosen acceptance."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from draft_service.drafters.replay import REPLAY, Script
from orchestrator.text.tokenizer import Tokenizer
from outrider.cli.processes import running_system
from outrider.client.client import Client
from outrider.embedded import resolve_model
from outrider.models.tokenizer_files import read_tokenizer

# Tokens that are drafted behind the end of a text are not verified, but have their cost.
_BEHIND_THE_END = 16


def replaying_draft(
    prompts: Sequence[str],
    settings: Mapping[str, object],
    model: str,
    acceptance: float,
    max_new_tokens: int,
    folder: Path,
) -> str:
    """Writes the script of a replaying draft for these prompts; returns its `--model`.

    Args:
        settings: of the target, which writes the texts now.
        model: which draft runs, for its cost.
        folder: for the script and for `prompts.json`. Both must last as long as the draft.

    Raises:
        OutriderError: the target cannot be started.
    """
    tokenizer = Tokenizer(read_tokenizer(resolve_model(str(settings.get("model", "default")))))
    with running_system(settings, None, {"port": 0}) as (address, _), Client(address) as client:
        texts = [
            [
                *tokenizer.encode(prompt),
                *client.generate(
                    prompt, max_new_tokens=max_new_tokens + _BEHIND_THE_END, ignore_eos=True
                ).token_ids,
            ]
            for prompt in prompts
        ]
    (folder / "prompts.json").write_text(json.dumps(list(prompts)))
    script = folder / "script.json"
    Script(model, acceptance, texts).write(script)
    return f"{REPLAY}{script}"
