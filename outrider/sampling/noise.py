"""Shared noise: a function of a seed, a position in a text and a token.

The bits come from SplitMix64 (Steele, Lea, Flood 2014), used as a counter-based generator on 64-bit
integers, so that all devices and hosts compute the same noise.
"""

import math

from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

_NUM_BITS = 53
_LARGEST_EXPONENT = 700.0
_EPSILON = 1e-6


def gumbel_noise(seed: int, index: int, ids: Tensor) -> Tensor:
    """Standard Gumbel noise in float64 for each token id, keyed by (seed, index, id)."""
    return _gumbel(_noise_bits(seed, index, ids))


def key_of(seed: int) -> int:
    """The int64 that represents a seed in `gumbel_rows`."""
    return _signed(_mix_int(seed))


def gumbel_rows(keys: Tensor, indices: Tensor, ids: Tensor) -> Tensor:
    """`gumbel_noise` for many seeds and positions at once, [num_rows, num_ids].

    Args:
        keys: [num_rows], `key_of` each seed.
        indices: [num_rows], positions in the texts.
        ids: [num_ids]
    """
    places = _mix_tensor(keys + (indices + 1) * _signed(_GOLDEN))
    return _gumbel(_bits(ids * _signed(_GOLDEN) + places[:, None]))


def has_noise_above(seed: int, index: int, ids: Tensor, least: float) -> Tensor:
    """For each id, whether `gumbel_noise` is at least `least`; if it is very close, also True."""
    uniform = math.exp(-math.exp(_EPSILON - least)) if least > -_LARGEST_EXPONENT else 0.0
    return _noise_bits(seed, index, ids) >= math.floor(uniform * 2.0**_NUM_BITS) - 1


def _noise_bits(seed: int, index: int, ids: Tensor) -> Tensor:
    """Random integers of 53 bits, from which noise is computed."""
    key = _mix_int(_mix_int(seed) + index * _GOLDEN)
    return _bits(ids * _signed(_GOLDEN) + _signed(key))


def _bits(counters: Tensor) -> Tensor:
    return _shift(_mix_tensor(counters), 64 - _NUM_BITS)


def _gumbel(bits: Tensor) -> Tensor:
    uniform = (bits.double() + 0.5) * 2.0**-_NUM_BITS  # in (0, 1)
    return -(-uniform.log()).log()


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _mix_tensor(x: Tensor) -> Tensor:
    """The same finalizer on int64, whose products wrap around; in place."""
    x ^= _shift(x, 30)
    x *= _signed(0xBF58476D1CE4E5B9)
    x ^= _shift(x, 27)
    x *= _signed(0x94D049BB133111EB)
    x ^= _shift(x, 31)
    return x


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's is arithmetic on int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    """The int64 with the bits of a 64-bit unsigned integer."""
    return x - (1 << 64) if x >= 1 << 63 else x
