"""The baseline: transformers `generate`, in a worker process."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

_loaded: dict[str, Any] = {}


def load(folder: str, settings: dict[str, Any]) -> None:
    """Loads model and tokenizer; called once in the worker process."""
    torch.set_num_threads(settings["threads"])
    dtype = getattr(torch, settings["dtype"])
    _loaded["model"] = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    _loaded["tokenizer"] = AutoTokenizer.from_pretrained(folder)


def encode(prompt: str) -> list[int]:
    """The prompt as one user message."""
    messages = [{"role": "user", "content": prompt}]
    encoded = _loaded["tokenizer"].apply_chat_template(messages, add_generation_prompt=True)
    return list(encoded["input_ids"])


def generate(ids: list[int], num_tokens: int) -> tuple[list[int], float]:
    """Greedy tokens, and the seconds they took."""
    began = time.perf_counter()
    output = _loaded["model"].generate(
        torch.tensor([ids]),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return output[0, len(ids) :].tolist(), time.perf_counter() - began
