"""The baseline of transformers: `generate`, alone and assisted by the draft, in a worker.

transformers cannot run a draft in int8 or with a part of the vocabulary, so it gets the
draft's weights in the target's precision. It cannot run feature drafts at all.
"""

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from outrider.engine.device import choose_device, choose_dtype
from outrider.models.tokenizer_files import load_tokenizer
from outrider_bench.runs import Run, Task

_loaded: dict[str, Any] = {}


def load(target: str, draft: str | None, device: str, dtype: str, threads: int) -> None:
    """Loads target, tokenizer and draft, if any, from their folders; called once in the worker."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    set_verbosity_error()
    where = choose_device(device)
    for role, folder in (("target", target), ("draft", draft)):
        if folder is None:
            continue
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=choose_dtype(dtype, where))
        _loaded[role] = model.eval().to(where)
    _loaded["tokenizer"] = load_tokenizer(target)


def encode(prompt: str) -> list[int]:
    """The prompt as one user message if the target has a chat template, else unchanged."""
    tokenizer = _loaded["tokenizer"]
    if tokenizer.chat_template is None:
        return list(tokenizer(prompt).input_ids)
    messages = [{"role": "user", "content": prompt}]
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=True, tokenize=True
    )
    return list(encoded["input_ids"])


def generate_assisted(task: Task, num_draft_tokens: int | None) -> Run:
    """Assisted by the draft, with its own schedule of lengths unless one is given."""
    draft = _loaded["draft"]
    if num_draft_tokens is not None:
        draft.generation_config.num_assistant_tokens = num_draft_tokens
        draft.generation_config.num_assistant_tokens_schedule = "constant"
        draft.generation_config.assistant_confidence_threshold = 0.0
    return generate(task, assistant_model=draft)


class Clock(BaseStreamer):
    """A streamer that notes when the first token came, and with how many others."""

    def __init__(self) -> None:
        self.first_time = 0.0
        self.num_first_tokens = 0
        self._has_prompt = False

    def put(self, value: torch.Tensor) -> None:
        if self._has_prompt and not self.num_first_tokens:
            self.first_time = time.perf_counter()
            self.num_first_tokens = value.numel()
        self._has_prompt = True

    def end(self) -> None:
        """Nothing to note."""


def generate(task: Task, **how: Any) -> Run:
    """The target alone, unless `how` says otherwise: arguments of transformers' `generate`."""
    target = _loaded["target"]
    ids = torch.tensor([encode(task.prompt)], device=target.device)
    sampling: dict[str, Any] = {"do_sample": False}
    if task.temperature:
        # Without filters from the model's generation configuration.
        sampling = {"do_sample": True, "temperature": task.temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(task.seed)
    clock = Clock()
    began = time.perf_counter()
    output = target.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=task.max_new_tokens,
        eos_token_id=None,
        pad_token_id=0,
        streamer=clock,
        **sampling,
        **how,
    )
    ended = time.perf_counter()
    tokens = output[0, ids.shape[1] :].tolist()
    num_later = max(1, len(tokens) - clock.num_first_tokens)
    later_ms = (ended - clock.first_time) * 1e3
    return Run(tokens, (clock.first_time - began) * 1e3, later_ms / num_later)
