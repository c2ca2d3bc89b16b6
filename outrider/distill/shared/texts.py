"""Token sequences on disk."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from outrider.errors import ConfigurationError

Array = NDArray[Any]


def read_text(path: Path) -> str:
    """Raises ConfigurationError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {path}: {error}") from error


class Arrays:
    """Arrays that a file holds by name; a base of dataclasses whose fields they are."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises ConfigurationError: the file cannot be read, or holds something else."""
        try:
            with np.load(path) as arrays:
                return cls(**arrays)
        except (OSError, ValueError, TypeError, BadZipFile) as error:
            raise ConfigurationError(f"cannot read {path}: {error}") from error

    def save(self, path: Path) -> None:
        """Writes an .npz file under a temporary name first, so that it is complete if it exists."""
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, allow_pickle=False, **vars(self))
        os.replace(partial, path)


@dataclass(frozen=True)
class Texts(Arrays):
    """Sequences end to end; file format of `--data`."""

    token_ids: Array  # [num_tokens], unsigned integers
    ends: Array  # [num_texts], the end of each text in token_ids
    prompt_lengths: Array  # [num_texts], how many of its tokens come before the answer

    def __len__(self) -> int:
        return len(self.ends)

    def bounds(self, index: int) -> tuple[int, int]:
        """Where text `index` begins and ends in `token_ids`."""
        return (int(self.ends[index - 1]) if index else 0), int(self.ends[index])

    def __iter__(self) -> Iterator[list[int]]:
        for index in range(len(self)):
            begin, end = self.bounds(index)
            yield self.token_ids[begin:end].tolist()

    def frequent_tokens(self, vocab_size: int, count: int) -> list[int]:
        """The `count` most frequent ids below `vocab_size`, ascending.

        If too few occur, small ids are added.
        """
        counts = np.bincount(self.token_ids, minlength=vocab_size)[:vocab_size]
        return sorted(np.argsort(-counts, kind="stable")[:count].tolist())

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], prompt_lengths: Sequence[int]) -> "Texts":
        ends = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
        token_ids = [token_id for sequence in sequences for token_id in sequence]
        return cls(np.array(token_ids, np.uint32), ends, np.array(prompt_lengths, np.int64))

    def parts(self, size: int) -> "Iterator[Texts]":
        """The texts in parts of at most `size`."""
        sequences, lengths = list(self), self.prompt_lengths.tolist()
        for begin in range(0, len(self), size):
            end = begin + size
            yield Texts.of(sequences[begin:end], lengths[begin:end])

    @classmethod
    def joined(cls, parts: "Sequence[Texts]") -> "Texts":
        starts = np.cumsum([0, *(len(part.token_ids) for part in parts)])
        return cls(
            np.concatenate([part.token_ids for part in parts]),
            np.concatenate([part.ends + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.prompt_lengths for part in parts]),
        )
