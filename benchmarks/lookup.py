"""How often draft and prompt lookup are right about the next token, where both propose one.

    python -m benchmarks.lookup [--max-new-tokens 64]

At each position of the default target's greedy answers to the benchmark's prompts: by the
number of tokens that match before it, and whether the two agree. `orchestrator/decoding/lookup.py`
chooses between them by this.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.decoding.lookup import SHORTEST_MATCH
from orchestrator.policy.config import MAX_DRAFT_LENGTH
from outrider.embedded import EMBEDDED_DRAFT, resolve_model
from outrider.engine.chunk import Capture, Chunk, Features
from outrider.engine.eagle3.engine import Eagle3Engine
from outrider.engine.engine import Engine
from outrider.engine.options import EngineOptions
from outrider.models.tokenizer_files import load_tokenizer
from outrider.sampling.prompt_lookup import longest_match
from outrider_bench.harness.prompts import read_prompts
from outrider_bench.output.results_file import write_result

# Longer matches are counted with these.
LONGEST = 6


@dataclass
class Count:
    """Positions of one kind, and how often either is right there."""

    places: int = 0
    draft_right: int = 0
    lookup_right: int = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-new-tokens", type=int, default=64)
    args = parser.parse_args()
    prompts = read_prompts(None)
    model = resolve_model("default")
    target = Engine(EngineOptions(model, dtype="float32", slots=1))
    draft = Eagle3Engine(EngineOptions(resolve_model(EMBEDDED_DRAFT), slots=1))
    tokenizer = load_tokenizer(model)
    counts: dict[tuple[int, bool], Count] = {}
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        tokens = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        text = answer(target, tokens, args.max_new_tokens)
        count(counts, text, len(tokens), first_choices(draft, target, text, len(tokens)))
    figures = [
        {
            "match": length,
            "agree": agree,
            "places": found.places,
            "draft_right": round(found.draft_right / found.places, 2),
            "lookup_right": round(found.lookup_right / found.places, 2),
        }
        for (length, agree), found in sorted(counts.items())
    ]
    for row in figures:
        print(row)
    print(write_result("lookup", vars(args), figures=figures))


def answer(engine: Engine, prompt: Sequence[int], num_tokens: int) -> list[int]:
    """The prompt and the greedy text after it, to its end at most."""
    text, unread = list(prompt), list(prompt)
    for _ in range(num_tokens):
        [logits] = engine.forward([Chunk(0, len(text) - len(unread), unread, 1)])
        unread = [int(logits[-1].argmax())]
        text += unread
        if text[-1] in engine.eos_token_ids:
            break
    return text


def first_choices(
    draft: Eagle3Engine, target: Engine, text: Sequence[int], start: int
) -> list[int]:
    """The draft's, for each token of the text from `start` on."""
    spec = draft.reads_hidden_states
    assert spec is not None
    capture = Capture(spec.layers)
    target.forward([Chunk(0, 0, text[:-2], capture=capture)])
    assert capture.rows is not None
    features = Features(capture.rows, are_own=False)
    # It reads each token with the hidden states of the one before.
    chunk = Chunk(0, 0, text[1:-1], len(text) - start, features=features)
    [logits] = draft.forward([chunk])
    return draft.logit_token_ids[logits.argmax(-1)].tolist()


def count(
    counts: dict[tuple[int, bool], Count], text: Sequence[int], start: int, drafts: Sequence[int]
) -> None:
    """Adds the positions of a text where both propose a token."""
    for place, draft in enumerate(drafts, start):
        match = longest_match(text[:place], SHORTEST_MATCH, MAX_DRAFT_LENGTH)
        if match is None:
            continue
        looked_up = text[match.end]
        key = (min(match.length, LONGEST), looked_up == draft)
        found = counts.setdefault(key, Count())
        found.places += 1
        found.draft_right += draft == text[place]
        found.lookup_right += looked_up == text[place]


if __name__ == "__main__":
    main()
