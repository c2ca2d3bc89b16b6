"""Compares ways to attend over a slot on a CPU, for one chunk of n tokens behind a context.

    python -m benchmarks.attention

Shapes of SmolLM2-135M (9 query heads, 3 key-value heads, 64 dimensions), one
thread. `sdpa` repeats each key-value head by `enable_gqa`; `folded` makes the
query heads that share one into rows; `matmul` is two plain products on folded
rows. Masks are made beforehand, since a pass makes them once for all of its layers; a
single query needs none. `outrider/engine/attention/query_blocks.py` takes `folded`, in blocks of
a few queries.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.support.timing import median_ms
from outrider_bench.output.results_file import write_result

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, MAX_LENGTH = 9, 3, 64, 2048
SCALE = HEAD_DIM**-0.5
CASES = [(n, length) for n in (1, 5, 9, 64, 256) for length in (64, 256, 1024) if n <= length]


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(
        query[None], key[None], value[None], attn_mask=mask, enable_gqa=True
    )[0]


def folded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    rows = query.reshape(NUM_KV_HEADS, -1, HEAD_DIM)
    output = scaled_dot_product_attention(rows[None], key[None], value[None], attn_mask=mask)
    return output[0].reshape(query.shape)


def matmul(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    rows = query.reshape(NUM_KV_HEADS, -1, HEAD_DIM)
    scores = torch.matmul(rows, key.transpose(1, 2)).mul_(SCALE)
    if mask is not None:
        scores.add_(mask)
    return torch.matmul(torch.softmax(scores, dim=-1), value).reshape(query.shape)


def main() -> None:
    torch.set_num_threads(1)
    figures = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for num_queries, length in CASES:
                times = measure(dtype, num_queries, length)
                figures.append(
                    {"dtype": str(dtype), "queries": num_queries, "keys": length, **times}
                )
                print(figures[-1])
    print(write_result("attention", {"threads": 1}, figures=figures))


def measure(dtype: torch.dtype, num_queries: int, length: int) -> dict[str, float]:
    """Median microseconds of each way."""
    keys, values = (torch.randn(NUM_KV_HEADS, MAX_LENGTH, HEAD_DIM, dtype=dtype) for _ in "kv")
    query = torch.randn(num_queries, NUM_HEADS, HEAD_DIM, dtype=dtype).transpose(0, 1)
    mask, folded_mask = None, None
    if num_queries > 1:
        mask = torch.full((num_queries, length), float("-inf"), dtype=dtype)
        mask = mask.triu(length - num_queries + 1)
        folded_mask = mask.repeat(NUM_HEADS // NUM_KV_HEADS, 1)
    arguments = (query, keys[:, :length], values[:, :length])
    ways: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: sdpa(*arguments, mask),
        "folded": lambda: folded(*arguments, folded_mask),
        "matmul": lambda: matmul(*arguments, folded_mask),
    }
    return {name: round(1e3 * median_ms(way, 20, first=3), 1) for name, way in ways.items()}


if __name__ == "__main__":
    main()
