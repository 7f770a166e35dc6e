"""Histories in constant memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


class Series:
    """Rows of numbers in constant memory.

    Parameters
    ----------
    columns : dict of str to str
        Name of each column and how two neighbours become one: ``"first"``, ``"last"``, ``"min"``,
        ``"max"``, ``"sum"`` or ``"mean"`` (weighted by the rows behind each). NaN stands for "not
        known" and gives way to a number.
    capacity : int
        Rows kept, even and at least 4. When they are full, pairs of neighbours are merged and every
        later row stands for twice as many.

    Notes
    -----
    After m rows the series holds between capacity/2 and capacity rows (fewer at the beginning), each
    merged from the same power of two; only the last may still be filling.
    """

    def __init__(self, columns: Mapping[str, str], capacity: int = 512) -> None:
        if capacity < 4 or capacity % 2:
            raise ValueError(f"Series: capacity must be even and >= 4, got {capacity}")
        self.columns = tuple(columns)
        unknown = set(columns.values()) - {"first", "last", "min", "max", "sum", "mean"}
        if unknown:
            raise ValueError(f"Series: unknown rule {sorted(unknown)[0]!r}")
        self._rules = tuple(columns.values())
        self._data = np.full((capacity, len(columns)), np.nan)
        self._weight = np.zeros(capacity)
        self._stride = 1
        self._n = 0
        # The last row while it fills: a plain list, several times cheaper than a NumPy row per event.
        self._open: list[float] = []
        self._filled = 0

    def __len__(self) -> int:
        return self._n

    @property
    def stride(self) -> int:
        """Rows given to `add` behind each row kept."""
        return self._stride

    def add(self, *row: float) -> None:
        """Append a row, one number per column."""
        if self._filled and self._filled < self._stride:
            self._merge_open(row)
            return
        self._sync()
        if self._n == len(self._data):
            self._halve()
        self._n += 1
        self._open, self._filled = list(row), 1

    def _merge_open(self, row: tuple[float, ...]) -> None:
        kept, w = self._open, self._filled
        for i, (rule, b) in enumerate(zip(self._rules, row, strict=True)):
            a = kept[i]
            if b != b or (rule == "first" and a == a):  # NaN is the number that is not itself
                continue
            if a != a or rule == "last":
                kept[i] = b
            elif rule == "mean":
                kept[i] = (w * a + b) / (w + 1)
            elif rule == "max":
                kept[i] = a if a > b else b
            elif rule == "min":
                kept[i] = a if a < b else b
            else:
                kept[i] = a + b
        self._filled += 1

    def _sync(self) -> None:
        if self._n:
            self._data[self._n - 1] = self._open
            self._weight[self._n - 1] = self._filled

    def _halve(self) -> None:
        a, b = self._data[0::2], self._data[1::2]
        wa, wb = self._weight[0::2], self._weight[1::2]
        half = len(self._data) // 2
        merged = np.where(np.isnan(a), b, a)  # "first", and whatever only one of the two knows
        both = ~np.isnan(a) & ~np.isnan(b)
        two = {
            "last": b,
            "min": np.minimum(a, b),
            "max": np.maximum(a, b),
            "sum": a + b,
            "mean": (wa[:, None] * a + wb[:, None] * b) / (wa + wb)[:, None],
        }
        for i, rule in enumerate(self._rules):
            if rule != "first":
                merged[:, i] = np.where(both[:, i], two[rule][:, i], merged[:, i])
        self._data[:half], self._weight[:half] = merged, wa + wb
        self._n, self._stride = half, 2 * self._stride
        self._open, self._filled = list(self._data[half - 1]), self._stride

    def __getitem__(self, name: str) -> np.ndarray:
        """One column, shape ``[len(self)]``, float64 (a copy)."""
        self._sync()
        return self._data[: self._n, self.columns.index(name)].copy()

    def pack(self) -> np.ndarray:
        """All columns, float32, shape ``[n_columns, len(self)]``."""
        self._sync()
        return self._data[: self._n].T.astype(np.float32, order="C")
