"""Files that are whole or not there: written under another name, flushed to the disk, then renamed.

Whatever the package writes goes through `whole`, and so a process killed at any moment, or a full disk,
leaves under a final name the file that was there before, or the new one, never a part. JSON of the package's
own carries a hash of its content (`write_json`, `read_json`), so that a flipped bit is found when it is read.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from interp.lock import is_running

__all__ = [
    "append",
    "digest",
    "expect_writable",
    "file_hash",
    "read_json",
    "safe_name",
    "sweep",
    "whole",
    "write_json",
    "write_text",
]

#: ``.name.host-pid-random.part``; the host as eight hex digits.
_PART = re.compile(r"\..*\.([0-9a-f]{8})-(\d+)-[0-9a-f]{8}\.part")


_PLAIN = re.compile(r"[A-Za-z0-9_+]([A-Za-z0-9_+.-]{0,98}[A-Za-z0-9_+])?")
#: What Windows takes for a device, with any suffix.
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)


@contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A name beside `path` to write a file to, which becomes `path` when the block ends well.

    The content is on the disk before the name is (``fsync`` of the file, then of the folder): what is
    reported after the block outlives a power cut too.

    Raises
    ------
    OSError
        If the disk does not take it, naming `path`. What was there before is untouched.
    """
    path = Path(path)
    part = _part(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
        mode = part.stat().st_mode
        yield part
        part.chmod(mode)  # as the umask has it: safetensors would let nobody else read
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):  # on a disk gone read-only even this fails; the error above says more
            part.unlink(missing_ok=True)


def expect_writable(folder: str | os.PathLike[str]) -> None:
    """Make a folder if need be, and a file in it for a moment: before long work, not behind it.

    Raises
    ------
    OSError
        If the folder cannot be written in, naming it.
    """
    probe = _part(Path(folder) / "writable")
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        number = error.errno or errno.EIO
        why = f"cannot write in {folder} ({os.strerror(number)}): use another folder"
        raise OSError(number, why) from error


def append(path: str | os.PathLike[str], line: str) -> None:
    """Add a line to a file and put it on the disk; a kill leaves the line, a part of it, or nothing.

    Raises
    ------
    OSError
        If the disk does not take it, naming `path`.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise _not_written(Path(path), error) from error


def write_text(path: str | os.PathLike[str], text: str, *, exist_ok: bool = True) -> Path:
    """Write a whole text file or nothing, UTF-8.

    Raises
    ------
    FileExistsError
        If the file exists and `exist_ok` is false.
    OSError
        As `whole`.
    """
    path = Path(path)
    if not exist_ok and path.exists():
        raise FileExistsError(f"{path} exists: give another name, or remove it")
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
    return path


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> Path:
    """Write a JSON object with a hash of its content (``sha256``), whole or not at all."""
    sealed = {**content, "sha256": _json_hash(content)}
    return write_text(path, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what `write_json` wrote, without the hash.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no JSON object, or not what was written; the file is named.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or brackets without end
        raise ValueError(f"{path} is damaged, it is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: expected a JSON object, found {type(content).__name__}")
    said = content.pop("sha256", None)
    if said != _json_hash(content):
        why = "the hash in it does not match its content" if said else "there is no hash in it"
        raise ValueError(f"{path} is damaged or was edited: {why}. Restore it, or make it again")
    return content


def safe_name(text: str) -> str:
    """A file name for any text: itself if that is plain and short, else what is plain of it and a hash.

    Plain are ASCII letters, digits, ``_``, ``+``, and inside a name ``-`` and dots; not what Windows keeps
    for devices, and not what looks like a name made here. So two texts never share a name.
    """
    if _PLAIN.fullmatch(text) and not _DEVICE.match(text) and not re.search(r"-[0-9a-f]{12}$", text):
        return text
    plain = re.sub(r"[^A-Za-z0-9_+-]+", "-", text).strip("-")[:60]
    return f"{plain or 'x'}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of a description and named arrays: their names, dtypes, shapes and bytes, in hexadecimal."""
    found = hashlib.sha256(json.dumps(meta, sort_keys=True).encode())
    for name in sorted(arrays):
        a = np.ascontiguousarray(arrays[name])
        found.update(f"{name} {a.dtype.str} {a.shape}".encode())
        found.update(a.reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def sweep(folder: str | os.PathLike[str], *, locked: bool = True) -> None:
    """Remove what writers that were killed left in a folder.

    Parameters
    ----------
    folder : path
    locked : bool
        Whether the caller holds the folder's lock, so that nobody else is writing. If not, only what ended
        processes of this host left goes.
    """
    for file in Path(folder).glob(".*.part"):
        found = _PART.fullmatch(file.name)
        if found and (locked or (found[1] == _host() and not is_running(int(found[2])))):
            file.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(f".{path.name[:80]}.{_host()}-{os.getpid()}-{os.urandom(4).hex()}.part")


def _host() -> str:
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _json_hash(content: Mapping[str, Any]) -> str:
    # Through JSON and back first: a reader has lists for tuples, and strings for the keys.
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _not_written(path: Path, error: Exception) -> OSError:
    """An `OSError` that says which file, with the number that safetensors leaves in its text only."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := re.search(r"os error (\d+)", str(error))):
        number = int(found[1])
    if number is None:
        return OSError(errno.EIO, f"could not write {path}: {error}")
    hint = ": make room and run again" if number in (errno.ENOSPC, errno.EDQUOT) else ""
    return OSError(number, f"could not write {path} ({os.strerror(number)}){hint}")


def _sync(folder: Path) -> None:
    """Put the names in a folder on the disk, where the system does that for folders."""
    with suppress(OSError):  # Windows opens no folders, some network mounts do not sync them
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
