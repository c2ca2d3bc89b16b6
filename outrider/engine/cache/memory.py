"""The memory for the KV cache, and the number of sessions that fit into it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from outrider.engine.cache.kv_cache import SlotCache
from outrider.engine.device import is_gpu
from outrider.engine.options import EngineOptions
from outrider.errors import ConfigurationError

# Shares of the memory that is free when the model has been loaded. Draft and target may share a
# machine, on a CPU with other programs, too. On a GPU a draft, the smaller model, is loaded
# first, and must leave room for the target's weights and cache.
_SHARE_OF_CPU = 0.1
_SHARE_OF_GPU = 0.8
_SHARE_OF_GPU_FOR_A_DRAFT = 0.2

# With more sessions at a time all are slow; further ones had better wait.
_MOST_SESSIONS_ON_CPU = 16
_MOST_SESSIONS_ON_GPU = 64

# Of the tokens that sessions may hold, the share that is kept for later texts that begin alike; at
# least those of one text.
_SHARE_KEPT = 0.125

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class TokenLimits:
    """How many tokens slots may hold; None: any number.

    `num_tokens` are those that sessions reserve, and `num_kept` those that are kept for later texts
    that begin alike, of which there are fewer if sessions need the room.
    """

    num_tokens: int | None = None
    num_kept: int | None = None


NO_LIMITS = TokenLimits()


def allocate(
    probing: SlotCache,
    options: EngineOptions,
    max_length: int,
    device: torch.device,
    agree: Callable[[int], int] = int,
) -> tuple[SlotCache, TokenLimits]:
    """The cache for serving, and what its slots may hold.

    Args:
        probing: knows the layers.
        max_length: of a slot.
        agree: makes a number of sessions that of all ranks.

    Raises ConfigurationError if there is not enough memory for what sessions may hold.
    """
    per_session = options.slots_per_session
    session_bytes = per_session * probing.slot_bytes(max_length)
    num_sessions = agree(
        options.slots or sessions_that_fit(session_bytes, device, options.is_draft)
    )
    num_slots = num_sessions * per_session
    room = num_slots * max_length
    num_tokens = min(options.cached_tokens or room, room)
    if num_tokens < per_session * max_length:
        raise ConfigurationError(
            f"--cached-tokens {num_tokens} is less than what the longest text takes, "
            f"{per_session * max_length} tokens"
        )
    # Other ranks follow the passes of the first one only.
    gives_back = probing.gives_back and options.tensor_parallel == 1
    if num_tokens < room and not gives_back:
        raise ConfigurationError(
            f"--cached-tokens: on {device}, or in ranks, slots keep their memory"
        )
    check_fits(probing.bytes_of(num_tokens, num_slots, max_length), device)
    cache = probing.resized(num_slots, max_length)
    if not gives_back:
        return cache, NO_LIMITS
    num_kept = max(max_length, int(_SHARE_KEPT * num_tokens / per_session))
    return cache, TokenLimits(num_tokens, num_kept)


def sessions_that_fit(session_bytes: int, device: torch.device, is_draft: bool = False) -> int:
    """The default number of sessions; at least one."""
    share, most = _SHARE_OF_CPU, _MOST_SESSIONS_ON_CPU
    if is_gpu(device):
        share, most = _SHARE_OF_GPU, _MOST_SESSIONS_ON_GPU
        share = _SHARE_OF_GPU_FOR_A_DRAFT if is_draft else share
    return max(1, min(most, int(share * free_bytes(device) / session_bytes)))


def check_fits(num_bytes: int, device: torch.device) -> None:
    """Raises ConfigurationError if less than `num_bytes` of memory is free."""
    free = free_bytes(device)
    if num_bytes > free:
        raise ConfigurationError(
            f"the KV cache takes {num_bytes / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free: "
            "fewer --slots or --cached-tokens, or a shorter --max-context-length"
        )


def free_bytes(device: torch.device) -> int:
    """The free memory of a device; on a CPU, within the container's limit."""
    if is_gpu(device):
        return int(torch.cuda.mem_get_info(device)[0])
    return min(_available_bytes(), _container_bytes())


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(kilobytes)


def _container_bytes() -> int:
    """The rest of the memory limit of this control group (version 2).

    Cached files count as used there, although they make room when memory is needed.
    """
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
        cached = int(next(line.split()[1] for line in lines if line.startswith("inactive_file ")))
    except (OSError, ValueError, StopIteration):
        return 2**62
    return 2**62 if limit == "max" else max(0, int(limit) - used + cached)
