"""Keeping events: a log with one line of JSON per event, and how it is read and followed."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from interp.events.records import Event, from_dict

logger = logging.getLogger(__name__)


class JsonlLog:
    """A hook that appends each event to a file as one line of JSON with a checksum, flushed at once.

    Parameters
    ----------
    path : str or Path
        The file. Missing folders are made; an existing log is continued.

    Examples
    --------
    >>> probe.fit(x, y, iteration_hook=JsonlLog("runs/fit/log.jsonl"))    # doctest: +SKIP
    >>> events = read("runs/fit/log.jsonl")                               # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._file = open(self.path, "a+b")  # noqa: SIM115 - lives as long as the hook
        # A log cut short by a kill ends in half a line: close it, so that ours starts on its own.
        size = self._file.seek(0, os.SEEK_END)
        if size:
            self._file.seek(size - 1)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def __call__(self, event: Event) -> None:
        line = json.dumps(event.to_dict(), separators=(",", ":"), allow_nan=False).encode()
        with self._lock, self._named():
            self._file.write(b'%s,"crc32":"%08x"}\n' % (line[:-1], zlib.crc32(line)))
            self._file.flush()  # where this fails, the rest of the line stays in the buffer for the next

    def close(self) -> None:
        """Close the file. Further events raise ``ValueError``."""
        with self._named():
            self._file.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno, f"could not write the event log {self.path}: {error.strerror}"
            ) from error

    def __enter__(self) -> JsonlLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Tail:
    """Follows a log, or a folder of logs, while others write them.

    Parameters
    ----------
    path : str or Path
        A ``.jsonl`` file, or a folder whose ``*.jsonl`` files are followed (new ones included).
        Neither needs to exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._offsets: dict[Path, int] = {}

    def files(self) -> list[Path]:
        """The logs found so far, sorted by name."""
        if self.path.is_dir():
            return sorted(self.path.glob("*.jsonl"))
        return [self.path] if self.path.exists() else []

    def new(self) -> Iterator[tuple[str, Event]]:
        """New events since the last call, one by one, as ``(file stem, event)``; half-written lines wait.

        One line is held at a time, however long the logs are. Leaving the loop early loses nothing: the
        next call goes on behind the last event that was taken.
        """
        for file in self.files():
            start = self._offsets.get(file, 0)
            try:
                size = file.stat().st_size
                if size == start:
                    continue
                if size < start:  # a new log stands under the old name
                    start = 0
                with open(file, "rb") as f:
                    f.seek(start)
                    for line in f:
                        if not line.endswith(b"\n"):
                            break
                        start += len(line)
                        self._offsets[file] = start
                        event = _parse(line, file)
                        if event is not None:
                            yield file.stem, event
            except FileNotFoundError:  # deleted since it was listed
                self._offsets.pop(file, None)

    def poll(self) -> list[tuple[str, Event]]:
        """All new events since the last call: `new` as a list."""
        return list(self.new())


def read(path: str | os.PathLike[str]) -> list[Event]:
    """The events of a log, or of all logs of a folder (by file name, then in order).

    Parameters
    ----------
    path : str or Path
        File written by `JsonlLog`, or a folder of them.

    Returns
    -------
    list of Event
        A last line that is not complete yet is left out; so is a line that is no event, with a warning.

    Raises
    ------
    FileNotFoundError
        If `path` does not exist.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no event log at {path}: give the .jsonl file of a JsonlLog, or its folder")
    return [event for _, event in Tail(path).new()]


#: The end of a line of ours: the checksum of the line as it would be without it.
_SEAL = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\s*$')


def _parse(line: bytes, file: Path) -> Event | None:
    if not line.strip():
        return None
    try:
        seal = _SEAL.search(line)  # lines of others may have none
        if seal and int(seal[1], 16) != zlib.crc32(line[: seal.start()] + b"}"):
            raise ValueError("it does not match its checksum")
        return from_dict(json.loads(line))
    except (ValueError, RecursionError) as error:  # no JSON, and no UTF-8, are ValueErrors
        logger.warning("skipped a log line that is no event, in %s (%s): %.80r", file, error, line)
        return None
