"""Files: the neighbours' formats, row shards that lie on disk, and the package's own safetensors."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
import scipy.sparse as sp

from interp.files import digest, whole
from interp.probe.data import check_indices

__all__ = [
    "RowShards",
    "load_csr",
    "load_labels",
    "read_safetensors",
    "write_metrics_npz",
    "write_safetensors",
]

#: Events that a shard of mapped rows holds, about.
_EVENTS = 1 << 23


#: What reading a damaged ZIP archive raises.
_DAMAGED = (
    ValueError,
    KeyError,
    OSError,
    EOFError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    OverflowError,
    BadZipFile,
    TokenError,
    zlib.error,
    struct.error,
)


#: The arrays of a CSR matrix, as SciPy and we name them.
_CSR_ARRAYS = ("data", "indices", "indptr", "shape")


def load_csr(path: str | os.PathLike[str]) -> sp.csr_array:
    """Read a ``token_acts.npz`` (SciPy CSR) at `path`: shape [n_rows, n_latents], of the file's dtype.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds no CSR matrix. Nothing is ever unpickled.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no sparse code at {path}: expected a SciPy CSR file such as token_acts.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            kind = file["format"].item() if "format" in file else b"csr"
            if kind not in (b"csr", "csr"):
                raise ValueError(f"it holds a {kind!r} matrix, expected CSR")
            x = sp.csr_array((file["data"], file["indices"], file["indptr"]), shape=tuple(file["shape"]))
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged or no SciPy CSR file: {error}") from error
    check_indices(x, str(path))
    return x


def load_labels(path: str | os.PathLike[str], n_rows: int | None = None) -> np.ndarray:
    """Map a ``labels.bin`` (uint8, one class id per row) or an integer ``.npy``: read-only, shape [n_rows].

    Raises
    ------
    FileNotFoundError, ValueError
        If the file is missing, or has not `n_rows` labels.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no labels at {path}: expected one uint8 class id per row of the code")
    if path.suffix == ".npy":
        labels = _mapped(path)
    elif path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    else:
        labels = np.memmap(path, dtype=np.uint8, mode="r")
    if n_rows is not None and len(labels) != n_rows:
        raise ValueError(f"{path} has {len(labels)} labels, x has {n_rows} rows: they must match")
    return labels


class RowShards:
    """Rows that lie on disk, as ``(x, y)`` shards that are read when they are asked for.

    What `Sparse1DProbe.fit`, `polish`, `certify`, `confusion` and `metrics` take as `x`; it can be iterated
    as often as one likes.

    Parameters
    ----------
    codes : path
        A ``token_acts.npz``, which is one shard; or a folder with ``data.npy``, ``indices.npy``,
        ``indptr.npy`` and ``shape.npy``, the arrays of a CSR matrix as `numpy.save` writes them. Those are
        mapped, and read some rows at a time: the code may be larger than the memory.
    labels : path
        ``labels.bin`` (uint8, mapped) or an integer ``.npy`` (mapped), one class id per row.
    shard_rows : int, optional
        Rows of a shard of a folder; by default about 8 million events. It is ignored for a file.

    Raises
    ------
    FileNotFoundError, ValueError
        If something is missing, damaged or does not fit; of the rows themselves, when they are read.
    """

    def __init__(
        self,
        codes: str | os.PathLike[str],
        labels: str | os.PathLike[str],
        *,
        shard_rows: int | None = None,
    ) -> None:
        if shard_rows is not None and shard_rows < 1:
            raise ValueError(f"shard_rows must be at least 1, got {shard_rows}")
        self.codes, self.labels = Path(codes), Path(labels)
        self._shard_rows = shard_rows
        if not self.codes.exists():
            raise FileNotFoundError(
                f"no sparse code at {codes}: expected a token_acts.npz or a folder of .npy"
            )

    def __iter__(self) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
        if not self.codes.is_dir():
            x = load_csr(self.codes)
            yield x, load_labels(self.labels, x.shape[0])
            return
        data, indices, indptr, shape = (_mapped(self.codes / f"{name}.npy") for name in _CSR_ARRAYS)
        n_rows, n_latents = (int(n) for n in shape)
        n_events = int(indptr[-1]) if len(indptr) else 0
        if len(indptr) != n_rows + 1 or n_events > min(len(data), len(indices)):
            raise ValueError(
                f"{self.codes} is no CSR matrix: shape {n_rows} × {n_latents} with {len(indptr)} row offsets "
                f"up to {n_events}, {len(indices)} indices and {len(data)} values"
            )
        y = load_labels(self.labels, n_rows)
        step = self._shard_rows or max(1, min(n_rows, round(_EVENTS * n_rows / max(1, n_events))))
        for start in range(0, n_rows, step):
            offsets = np.array(indptr[start : start + step + 1])
            first, last = int(offsets[0]), int(offsets[-1])
            if not 0 <= first <= last <= n_events:
                raise ValueError(f"{self.codes} is no valid CSR matrix: indptr falls behind row {start}")
            parts = np.array(data[first:last]), np.array(indices[first:last]), offsets - first
            x = sp.csr_array(parts, shape=(len(offsets) - 1, n_latents))
            check_indices(x, f"{self.codes}, from row {start} on,")
            yield x, y[start : start + x.shape[0]]


def _mapped(path: Path) -> np.ndarray:
    """An ``.npy`` as a read-only memory map."""
    if not path.exists():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: expected {', '.join(_CSR_ARRAYS)} as .npy")
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(f"{path} is damaged or no .npy file: {error}") from error
    if found.ndim != 1:
        raise ValueError(f"{path} has shape {found.shape}, expected one dimension")
    return found


def write_metrics_npz(path: str | os.PathLike[str], **arrays: np.ndarray) -> Path:
    """Write ``probe1d_metrics.npz`` (loss, weights, biases, tp, fp, tn, fn), whole or not at all."""
    with whole(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return Path(path)


def write_safetensors(
    path: str | os.PathLike[str],
    format: str,
    version: int,
    meta: dict[str, Any],
    tensors: dict[str, np.ndarray],
) -> Path:
    """Write one of the package's own files, whole or not at all, with a digest of everything in it."""
    from safetensors.numpy import save_file

    meta = {"format": format, "version": version, **meta}
    meta["sha256"] = digest(meta, tensors)
    with whole(path) as partial:
        save_file(tensors, partial, metadata={"interp": json.dumps(meta)})
    return Path(path)


def read_safetensors(
    path: str | os.PathLike[str], format: str, version: int
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Description and arrays of one of the package's own files, of the shape and dtype written.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is damaged, or of another kind or version.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).exists():
        raise FileNotFoundError(f"no file at {path}: expected one written as {format}")
    try:
        with safe_open(path, framework="np") as file:
            meta = json.loads((file.metadata() or {}).get("interp", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error
    found = meta.get("format"), meta.get("version")
    if found != (format, version):
        raise ValueError(f"{path} holds {found[0]!r} version {found[1]!r}, expected {format!r} {version}")
    if meta.pop("sha256", None) != digest(meta, tensors):
        raise ValueError(f"{path} is damaged: its digest does not match its content")
    return meta, tensors
