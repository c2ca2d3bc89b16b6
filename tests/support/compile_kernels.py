"""Compiles what the kernels are launched with, for a GPU that need not be there.

    TRITON_INTERPRET=0 python -m tests.support.compile_kernels

Prints a line of JSON for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from outrider.engine.attention.rope import Rotation
from outrider.engine.cuda import kernels, ranking_kernel
from outrider.sampling.recorded_sampling import NUM_SETTINGS, RowSettings, SamplingWork

GREEDY = SamplingWork(is_greedy=True, filters=False)
HOPPER = GPUTarget("cuda", 90, 32)
_TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    int: "i32",
    float: "fp32",
}


class Compiling:
    """In a kernel's place: it is compiled for what it is launched with."""

    def __init__(self, kernel: Any, case: dict[str, Any]) -> None:
        self._kernel = kernel
        self._case = case

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._compile

    def _compile(self, *args: Any, **constants: Any) -> None:
        types = [_TYPES[arg.dtype if isinstance(arg, Tensor) else type(arg)] for arg in args]
        names = self._kernel.arg_names
        signature = dict(zip(names, types, strict=False)) | dict.fromkeys(constants, "constexpr")
        # What Triton is told of arguments when a kernel is launched, besides their types.
        multiples = {
            (place,): [["tt.divisibility", 16]]
            for place, arg in enumerate(args)
            if isinstance(arg, Tensor) or (isinstance(arg, int) and arg % 16 == 0)
        }
        ones = {
            names[place]: 1 for place, arg in enumerate(args) if isinstance(arg, int) and arg == 1
        }
        signature |= dict.fromkeys(ones, "constexpr")
        source = ASTSource(self._kernel, signature, constants | ones, multiples)
        compiled = triton.compile(source, target=HOPPER)
        found = {
            "kernel": self._kernel.__name__,
            **self._case,
            "has_matrix_instructions": "mma" in compiled.asm["ptx"],
            "shared_bytes": compiled.metadata.shared,
            "bytes": len(compiled.asm["cubin"]),
        }
        print(json.dumps(found))


def main() -> None:
    compile_attention()
    compile_ranking()


def compile_attention() -> None:
    originals = (kernels._attend_kernel, kernels._join_kernel)
    for dtype, heads, width, length, window, size in (
        (torch.bfloat16, (16, 16, 128), 1, 256, None, 32),  # a step of Pythia-1.4B
        (torch.bfloat16, (32, 8, 128), 8, 8192, None, 128),  # a verification of Llama-3.1-8B
        (torch.float16, (12, 12, 80), 4, 2048, 64, 20),
        (torch.bfloat16, (4, 1, 256), 16, 2048, 512, 0),  # turned before, as by transformers
        (torch.float32, (32, 8, 256), 16, 8192, 64, 128),
    ):
        case = {"dtype": str(dtype), "heads": heads, "width": width, "length": length}
        kernels._attend_kernel, kernels._join_kernel = (
            Compiling(kernel, case) for kernel in originals
        )
        num_heads, num_kv_heads, head_dim = heads
        query, key, keys = (
            torch.empty(*shape, head_dim, dtype=dtype)
            for shape in ((width, num_heads), (width, num_kv_heads), (2, num_kv_heads, length))
        )
        table = torch.empty(width, 1, head_dim, dtype=dtype)
        places = (torch.zeros(1, dtype=torch.int64), torch.arange(width))
        rotation = Rotation(table, table, size) if size else None
        kernels.attend(query, key, key, keys, keys, *places, 0.1, length, window, rotation)


def compile_ranking() -> None:
    originals = (ranking_kernel._parts_kernel, ranking_kernel._rows_kernel)
    for dtype, num_columns, work, width in (
        (torch.bfloat16, 50304, GREEDY, 1),  # a verification of Pythia-1.4B
        (torch.bfloat16, 128256, SamplingWork(is_greedy=False, filters=False), 5),
        (torch.float32, 16384, SamplingWork(is_greedy=False, filters=True), 5),
    ):
        case = {"dtype": str(dtype), "columns": num_columns, "work": work, "width": width}
        ranking_kernel._parts_kernel, ranking_kernel._rows_kernel = (
            Compiling(kernel, case) for kernel in originals
        )
        settings = RowSettings.of(torch.zeros(NUM_SETTINGS, 2, dtype=torch.int64))
        logits = torch.empty(2, num_columns, dtype=dtype)
        ids, indices = torch.arange(num_columns), torch.zeros(2, dtype=torch.int64)
        threshold = torch.zeros(2, 1, dtype=torch.float64) if work.filters else None
        ranking_kernel.rank(logits, ids, indices, settings, work.is_greedy, threshold, width)


if __name__ == "__main__":
    main()
