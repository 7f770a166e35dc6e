"""Captures on disk: safetensors shards, a journal while the run lasts, a manifest when it is done.

::

    folder/
      manifest.json      what was captured, of what, and every shard with its hash
      journal.jsonl      while running: one line per finished shard, with a hash of the line
      shard-00000.safetensors …

A shard is written under another name, flushed, renamed (`interp.files.whole`), and only then entered in the
journal, so that a run killed at any moment leaves whole shards and resumes behind them. A shard is plain
safetensors: a tensor per site (``resid_post.3``), ``projection/<site>``, and ``token_ids``, ``prompts``,
``lengths``, ``n_prompt``.
Sites that are the same state are stored once: ``same_as`` in the manifest says where.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.capture.activations import Shard
from interp.files import append, file_hash, read_json, sweep, whole, write_json, write_text
from interp.lock import lock

__all__ = ["Folder", "Memory", "StoredShard", "open_folder"]

FORMAT = "interp-activations 1"
MANIFEST, JOURNAL = "manifest.json", "journal.jsonl"

#: What must agree for a run to be continued in a folder.
IDENTITY = (
    "model",
    "tokenizer_hash",
    "sites",
    "vectors",
    "vectors_hash",
    "prompts_hash",
    "max_new_tokens",
    "temperature",
    "stop_at_eos",
    "seed",
    "keep_states",
)


class StoredShard(Shard):
    """A shard in a file. Tensors are read when asked for."""

    def __init__(self, folder: Path, entry: dict[str, Any], *, verify: bool) -> None:
        if not re.fullmatch(r"shard-\d+\.safetensors", entry["file"]):
            raise ValueError(
                f"{folder} names {entry['file']!r} as a shard, which interp never writes: damaged"
            )
        self.path = path = folder / entry["file"]
        self._sha256 = entry["sha256"] if verify else None
        if not path.is_file():
            raise FileNotFoundError(f"shard {path} is missing: the manifest lists it")
        if path.stat().st_size != entry["bytes"]:
            raise _damaged(path, f"{path.stat().st_size} bytes instead of {entry['bytes']}")
        self.prompts = entry["prompts"]
        self.lengths = entry["lengths"]
        self.n_prompt = entry["n_prompt"]
        self.tensors = {}

    def verify(self) -> None:
        """Compare the file with its hash, once.

        Raises
        ------
        ValueError
            If they differ, naming the file.
        """
        if self._sha256 is not None:
            if file_hash(self.path) != self._sha256:
                raise _damaged(self.path, "its content does not match the hash in the manifest")
            self._sha256 = None

    def _open(self) -> Any:
        from safetensors import safe_open

        self.verify()
        return safe_open(self.path, framework="pt")

    @property
    def token_ids(self) -> Tensor:  # type: ignore[override]
        """Token of every row, int64 ``[n_rows]``."""
        return self.read("token_ids")

    @property
    def token_strings(self) -> dict[int, str]:  # type: ignore[override]
        """What the shard's token ids look like, as text."""
        with self._open() as f:
            return {int(k): v for k, v in json.loads(f.metadata()["token_strings"]).items()}

    def read(self, name: str) -> Tensor:
        """The rows of a site (or projection), ``[n_rows, …]``, of the dtype captured."""
        with self._open() as f:
            return f.get_tensor(name)

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows `start` … `stop` − 1, ``[stop − start, …]``, of the dtype captured; no others are read."""
        with self._open() as f:
            return f.get_slice(name)[start:stop]

    def whole(self) -> Shard:
        """The shard with all its tensors in memory."""
        with self._open() as f:
            tensors = {k: f.get_tensor(k) for k in f.keys() if k not in _BOOKKEEPING}  # noqa: SIM118
        return Shard(self.prompts, self.lengths, self.n_prompt, self.token_ids, tensors, self.token_strings)


_BOOKKEEPING = ("token_ids", "prompts", "lengths", "n_prompt")


class Memory:
    """Shards in memory, with the interface of `Folder`."""

    path = None
    complete = False

    def __init__(self) -> None:
        self.shards: list[Shard] = []

    def add(self, shard: Shard) -> None:
        """Keep a shard."""
        self.shards.append(shard)

    def finish(self, meta: dict[str, Any]) -> None:
        """Nothing is left to do."""

    def close(self) -> None:
        """Nothing is held."""


class Folder:
    """A folder that a capture writes into, held for this process until `close`.

    Attributes
    ----------
    path : Path
        The folder.
    shards : list of StoredShard
        The finished ones, to read.
    complete : bool
        Whether the run that it holds is finished.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.entries: list[dict[str, Any]] = []
        self.shards: list[StoredShard] = []
        self.complete = False
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"{self.path} is a file: give a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = lock(self.path)

    @classmethod
    def create(cls, path: str | os.PathLike[str], meta: dict[str, Any]) -> Folder:
        """Start in a new or empty folder.

        Raises
        ------
        FileExistsError
            If it holds anything: nothing is overwritten.
        LockedError
            If another process is writing there.
        OSError
            If it cannot be written in.
        """
        folder = cls(path)
        try:
            folder._begin(meta)
        except BaseException:  # Ctrl-C too: the caller never gets a folder to close
            folder.close()
            raise
        return folder

    @classmethod
    def create_or_resume(cls, path: str | os.PathLike[str], meta: dict[str, Any]) -> Folder:
        """Start in a new or empty folder, or behind the finished shards of the same run.

        Raises
        ------
        FileExistsError
            If the folder holds something else: another model's, other prompts' or another setting's run (said
            which).
        ValueError
            If a finished shard, the manifest or the journal is damaged (named).
        LockedError, OSError
            As `create`.
        """
        folder = cls(path)
        try:
            if not (folder.path / MANIFEST).exists():
                folder._begin(meta)
                return folder
            found = read_manifest(folder.path)
            differing = [k for k in IDENTITY if _json(found.get(k)) != _json(meta[k])]
            if differing:
                k = differing[0]
                raise FileExistsError(
                    f"{path} holds another run: its {k} is {_brief(found.get(k))}, this one's is "
                    f"{_brief(meta[k])}. "
                    "Give another folder"
                )
            folder._resume(found)
        except BaseException:  # Ctrl-C too: the caller never gets a folder to close
            folder.close()
            raise
        return folder

    def _begin(self, meta: dict[str, Any]) -> None:
        sweep(self.path)
        if any(file != self._lock.path for file in self.path.iterdir()):
            raise FileExistsError(f"{self.path} exists and is not empty: give another folder")
        write_json(self.path / MANIFEST, _manifest(meta, complete=False))

    def _resume(self, found: dict[str, Any]) -> None:
        sweep(self.path)
        self.complete = found["complete"]
        self.entries = found["shards"] if self.complete else list(_journal(self.path))
        self.shards = [StoredShard(self.path, e, verify=True) for e in self.entries]
        for shard in self.shards:
            shard.verify()
        named = {entry["file"] for entry in self.entries}
        for stray in self.path.glob("shard-*.safetensors"):
            if stray.name not in named:  # renamed, then killed before its line in the journal
                stray.unlink()
        if not self.complete:  # a line cut short by the kill goes
            write_text(self.path / JOURNAL, "".join(_line(e) + "\n" for e in self.entries))

    def close(self) -> None:
        """Let go of the folder."""
        self._lock.release()

    def add(self, shard: Shard) -> None:
        """Write one shard and enter it in the journal.

        Raises
        ------
        OSError
            If the disk does not take it; earlier shards are intact.
        """
        from safetensors.torch import save_file

        name = f"shard-{len(self.entries):05d}.safetensors"
        target = self.path / name
        tensors = {k: v.contiguous() for k, v in shard.tensors.items()}
        tensors["token_ids"] = shard.token_ids
        for key in ("prompts", "lengths", "n_prompt"):
            tensors[key] = torch.tensor(getattr(shard, key), dtype=torch.int64)
        try:
            with whole(target) as part:
                save_file(tensors, part, metadata={"token_strings": _json(shard.token_strings)})
                entry = {
                    "file": name,
                    "bytes": part.stat().st_size,
                    "sha256": file_hash(part),
                    "prompts": shard.prompts,
                    "lengths": shard.lengths,
                    "n_prompt": shard.n_prompt,
                }
            append(self.path / JOURNAL, _line(entry))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}. The {len(self.entries)} shards before it are intact: run again to go on "
                "behind them",
            ) from error
        self.entries.append(entry)
        self.shards.append(StoredShard(self.path, entry, verify=False))

    def finish(self, meta: dict[str, Any]) -> None:
        """Write the manifest with all shards; the journal goes."""
        write_json(self.path / MANIFEST, _manifest(meta, complete=True, shards=self.entries))
        (self.path / JOURNAL).unlink(missing_ok=True)


def open_folder(folder: str | os.PathLike[str], *, verify: bool) -> tuple[dict[str, Any], list[Shard]]:
    """Manifest and shards of a folder; of an unfinished run, the shards so far.

    Raises
    ------
    FileNotFoundError, ValueError
        As `Activations.load` says.
    """
    path = Path(folder)
    meta = read_manifest(path)
    entries = meta["shards"] if meta["complete"] else list(_journal(path))
    return meta, [StoredShard(path, e, verify=verify) for e in entries]


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    ValueError
        If it is not one of ours.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"no captured activations in {folder}: there is no {MANIFEST}")
    meta = read_json(path)
    if meta.get("format") != FORMAT:
        raise ValueError(f"{path} has format {meta.get('format')!r}, expected {FORMAT!r}")
    return meta


def _line(entry: dict[str, Any]) -> str:
    """An entry of the journal: checksum, space, JSON."""
    text = _json(entry)
    return f"{zlib.crc32(text.encode()):08x} {text}"


def _journal(path: Path) -> Iterator[dict[str, Any]]:
    journal = path / JOURNAL
    lines = journal.read_bytes().split(b"\n") if journal.exists() else [b""]
    for number, line in enumerate(lines[:-1], 1):
        checksum, _, text = line.partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            raise ValueError(
                f"{journal} is damaged: line {number} does not match its checksum. Restore it, or capture "
                "again into another folder"
            )
        yield json.loads(text)
    # What follows the last line feed was cut short by a kill: its shard is done again.


def _manifest(
    meta: dict[str, Any], *, complete: bool, shards: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {**meta, "format": FORMAT, "complete": complete, "shards": shards or []}


def _damaged(path: Path, how: str) -> ValueError:
    return ValueError(f"shard {path} is damaged: {how}. Restore it, or capture again into another folder")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True)


def _brief(value: Any) -> str:
    text = _json(value)
    return text if len(text) <= 120 else text[:117] + "…"
