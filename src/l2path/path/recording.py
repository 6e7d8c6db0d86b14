"""What training leaves behind, member by member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from l2path.path.chunks import Weights

Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
TRAIN_KEYS = ("loss", "penalty", "objective")


class Record:
    """The history of all members, and how each of them ended.

    Parameters
    ----------
    scores : sequence of str
        What is recorded beside means over the steps.
    members : int
        K.

    Attributes
    ----------
    status : list of str
    epochs : list of int
        In which a member took part.
    diverged_at : list of int or None
        Steps.
    parked : dict
        Weights of members that have left, by member.
    """

    def __init__(self, scores: Sequence[str], members: int) -> None:
        self.rows: dict[str, list[Array]] = {name: [] for name in (*TRAIN_KEYS, *scores)}
        self.members = members
        self.status = ["trained"] * members
        self.epochs = [0] * members
        self.diverged_at: list[int | None] = [None] * members
        self.parked: dict[int, Weights] = {}

    def start(self) -> Sums:
        """Return the sums of an epoch that begins."""
        return Sums(self.members)

    def append(self, found: Mapping[str, Array]) -> None:
        """Add an epoch, ``[K]`` by name; what is missing is NaN."""
        for name, rows in self.rows.items():
            rows.append(found[name] if name in found else np.full(self.members, np.nan))

    def history(self, epochs: int | None = None) -> dict[str, Tensor]:
        """Return the history, of so many epochs where it is said, ``[epochs, K]`` float64 by name."""
        empty = np.empty((0, self.members))
        every = {name: rows[:epochs] for name, rows in self.rows.items()}
        return {name: torch.from_numpy(np.stack(rows) if rows else empty) for name, rows in every.items()}

    def last(self, name: str, epochs: Sequence[int]) -> Array:
        """Return ``[K]`` scores: each member's in the epoch, from 1, that is given for it; NaN for epoch 0."""
        return np.array([self.rows[name][n - 1][k] if n else np.nan for k, n in enumerate(epochs)])


class Sums:
    """Sums of the metrics of an epoch's steps, ``[3, K]``, weighted with the rows of each batch."""

    def __init__(self, members: int) -> None:
        self.sums: Array = np.zeros((len(TRAIN_KEYS), members))

    def with_block(self, members: list[int], rows: list[int], values: Array) -> None:
        """Add ``[3, T, C]`` metrics of a block of T batches for these members."""
        start = self.sums[:, None, members]
        with np.errstate(over="ignore", invalid="ignore"):  # of members on their way out
            # Step by step, as cumsum goes: no digit depends on the length of the block.
            steps = np.concatenate([start, np.array(rows)[:, None] * values], axis=1).cumsum(axis=1)
        self.sums[:, members] = steps[:, -1]

    def means(self, rows: Mapping[int, int]) -> dict[str, Array]:
        """Return ``[K]`` means by name over the rows that each member has seen; NaN for those that are not named."""
        found = np.full_like(self.sums, np.nan)
        members = list(rows)
        found[:, members] = self.sums[:, members] / np.array([rows[k] for k in members])
        return dict(zip(TRAIN_KEYS, found, strict=True))
