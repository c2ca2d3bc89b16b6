"""What an engine claims of its bits, and what tests make of it."""

from __future__ import annotations

import pytest
import torch

from outrider.engine.engine import Engine


def needs_invariant(engine: Engine) -> None:
    """Skips a test of bits where the engine makes no claim; fails it where it should make one.

    In float32 and bfloat16, every x86 CPU with AVX2, AVX-512 or AMX has shapes to be found.
    """
    assert engine.batch_invariance is not None
    if engine.batch_invariance.holds:
        return
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in ("AVX2", "AVX512") and engine.dtype in (torch.float32, torch.bfloat16):
        pytest.fail(f"no shapes were found in which {engine.dtype} keeps its bits on {capability}")
    pytest.skip(f"the engine claims no invariance for {engine.dtype} on {capability}")
