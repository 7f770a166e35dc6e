"""One writer per run folder: ``with lock(folder): …``, refused with the holder named.

The file ``.lock`` in the folder says who holds it (host, process, since when) and is locked with ``flock``,
which the system lets go of when the process ends, however it ends: a lock left behind by a kill is taken over
at once. No time is ever compared, so a clock that jumps changes nothing.

A file system without ``flock`` (Windows, some network mounts) leaves only the file itself: there it is made
exclusively, and taken over if its process was on this host and is gone. Of a process on another host nobody
can tell, and the error says so.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["LockedError", "is_running", "lock"]

logger = logging.getLogger(__name__)

NAME = ".lock"

#: Network file systems whose ``flock`` may hold on one host only; see `_reaches`.
_NETWORK = ("nfs", "nfs4", "lustre", "beegfs", "cifs", "smb3", "9p", "fuse")


class LockedError(RuntimeError):
    """A folder is held by another process, which the message names."""


class lock:
    """Hold a folder for this process, from now until `release` or the end of the ``with`` block.

    Parameters
    ----------
    folder : path
        An existing folder.

    Attributes
    ----------
    recovered : dict or None
        The holder whose process had ended without letting go, if there was one: ``host``, ``pid``, ``since``.

    Raises
    ------
    LockedError
        If another process (or another place in this one) holds it: which one, since when.
    OSError
        If the folder cannot be written in, before any work is lost to it.

    Examples
    --------
    >>> with lock("runs/today"):                                         # doctest: +SKIP
    ...     write_everything()
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.path = self.folder / NAME
        self.recovered: dict[str, Any] | None = None
        self._pid = os.getpid()
        self._own = _myself()
        self._fd: int | None = None
        flock = _flock()
        try:
            if flock is None or not self._locked(flock):
                self._fd = None
                self._made_alone()
        except OSError as error:
            if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT):
                why = f"cannot write in {self.folder} ({error.strerror}): use another folder"
                raise OSError(error.errno, why) from error
            raise
        self._held = True
        if self.recovered is not None:
            logger.warning("%s: took over the lock of %s, which has ended", self.folder, _who(self.recovered))

    def release(self) -> None:
        """Let go of the folder; doing it twice, or in a forked child, does nothing."""
        if not self._held or os.getpid() != self._pid:
            return
        self._held = False
        # First the name, then the lock: whoever waits for the lock sees that its file is no longer the one.
        self.path.unlink(missing_ok=True)
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    # ------------------------------------------------------------------ with flock

    def _locked(self, flock: Callable[[int], None]) -> bool:
        """Take the lock with `flock`; False if the file system has none."""
        while True:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                flock(fd)
                if not _is(fd, self.path):  # released, and with it removed, between open and flock
                    os.close(fd)
                    continue
                before = _holder(self.path)
                if before is not None and before["host"] != self._own["host"] and not _reaches(self.folder):
                    raise self._refusal(before, unsure=True)
                os.ftruncate(fd, 0)
                self._say(fd)
            except BlockingIOError:
                os.close(fd)
                raise self._refusal(_holder(self.path)) from None
            except OSError as error:
                os.close(fd)
                if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                    return False
                raise
            except BaseException:  # Ctrl-C too: an open file would keep the lock
                os.close(fd)
                raise
            self._fd, self.recovered = fd, before
            return True

    def _say(self, fd: int) -> None:
        try:
            os.write(fd, json.dumps(self._own).encode())
        except OSError:  # a full disk: leave nothing
            self.path.unlink(missing_ok=True)
            raise

    # ------------------------------------------------------------------ without

    def _made_alone(self) -> None:
        """Make the file where none is: what `flock` is replaced with where there is none."""
        while not self._put(self.path):
            seen = _look(self.path)
            claims = None if seen is None else self._heir_of(self.path, *seen)
            if seen is None or claims is None:
                continue
            try:
                self._put(self.path, replace=True)
            finally:
                for claim in claims:
                    claim.unlink(missing_ok=True)
            self.recovered = seen[1]
            return

    def _heir_of(self, file: Path, key: str, holder: dict[str, Any] | None) -> list[Path] | None:
        """Become the only process that may replace the file of one that is gone.

        Taking such a file away by its name would take that of whoever was quicker. So its heir is whoever
        makes a file that is named after it; where that heir is gone as well, whoever becomes the heir's. The
        files that were made are to be removed, in their order, once `file` is replaced: who comes late with a
        claim to it sees that it is another by now.

        Returns
        -------
        list of Path or None
            None if `file` is another by now.
        """
        if holder is not None and (holder["host"] != self._own["host"] or _is_alive(holder)):
            raise self._refusal(holder, unsure=holder["host"] != self._own["host"])
        claim = self.folder / f"{NAME}.{key}.heir"
        claims: list[Path] | None = [claim]
        if not self._put(claim):
            other = _look(claim)
            behind = None if other is None else self._heir_of(claim, *other)
            claims = None if behind is None else [claim, *behind]
        if claims is None:
            return None
        now = _look(file)
        if now is not None and now[0] == key:
            return claims
        for made in claims:
            made.unlink(missing_ok=True)
        return None

    def _put(self, path: Path, *, replace: bool = False) -> bool:
        """Make a file that names this process, whole; False if there is one."""
        draft = self.folder / f"{NAME}.{uuid.uuid4().hex}"
        try:
            draft.write_text(json.dumps(self._own), encoding="utf-8")
            if replace:
                os.replace(draft, path)
                return True
            return _renamed_if_free(draft, path)
        finally:
            draft.unlink(missing_ok=True)

    def _refusal(self, holder: dict[str, Any] | None, *, unsure: bool = False) -> LockedError:
        what = f"{self.folder} is being written by another process"
        if holder is None:
            return LockedError(f"{what}, which has just begun: wait for it, or give another folder")
        what = f"{self.folder} is being written by {_who(holder)}"
        if holder["host"] == self._own["host"] and holder["pid"] == self._own["pid"]:
            what += " (this very process)"
        if unsure:
            return LockedError(
                f"{what}. Locks on this file system do not reach other hosts, so whether that process still "
                f"runs cannot be told from here: if it does not, delete {self.path}"
            )
        return LockedError(f"{what}: wait for it, stop it, or give another folder")


def _flock() -> Callable[[int], None] | None:
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    return lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "born": _born(os.getpid()),
    }


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}"


def _look(path: Path) -> tuple[str, dict[str, Any] | None] | None:
    """What tells a file from any other that has its name, and whom it names; None if it is gone."""
    try:
        about, content = os.stat(path), path.read_bytes()
    except FileNotFoundError:
        return None
    key = hashlib.sha256(b"%d %d " % (about.st_ino, about.st_mtime_ns) + content)
    return key.hexdigest()[:16], _named(content)


def _holder(path: Path) -> dict[str, Any] | None:
    """Whom a lock file names; None for one that says nothing (yet)."""
    try:
        return _named(path.read_bytes())
    except OSError:  # gone by now
        return None


def _named(content: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(content)
        return {
            "host": str(found["host"]),
            "pid": int(found["pid"]),
            "since": str(found["since"]),
            "born": str(found["born"]),
        }
    except (ValueError, KeyError, TypeError):  # half-written, or damaged
        return None


def _is(fd: int, path: Path) -> bool:
    """Whether an open file is the one under this name."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _renamed_if_free(draft: Path, path: Path) -> bool:
    """Move a file to a name that nobody has; at once, also over NFS."""
    try:
        if sys.platform == "win32":
            os.rename(draft, path)  # refuses an existing name there
        else:
            os.link(draft, path)
    except FileExistsError:
        return False
    return True


def _born(pid: int) -> str:
    """Boot and start of a process, in ticks since then: what tells it from a later one of the same number."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{boot} {fields[19]}"  # a zombie has ended
    except (OSError, IndexError):  # no /proc, or no such process
        return ""


def is_running(pid: int) -> bool:
    """Whether this host has a process of this number; when in doubt, it has."""
    if sys.platform == "win32":  # where os.kill would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_alive(holder: dict[str, Any]) -> bool:
    """Whether a process of this host still runs, and is no later one of the same number."""
    if holder["born"]:
        return _born(holder["pid"]) == holder["born"]
    return is_running(holder["pid"])


def _reaches(folder: Path) -> bool:
    """Whether a lock here is seen by every host that sees the folder.

    On a disk of this host it is, and so the name of another host in the file is an old name of this one. Of
    network file systems only those are trusted whose mount options say so.
    """
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # no Linux
        return False
    place, kind, options = -1, "", ""
    resolved = folder.resolve()
    for line in mounts:
        first, _, second = line.partition(" - ")
        point = Path(first.split()[4].encode().decode("unicode_escape"))
        if (resolved == point or point in resolved.parents) and len(point.parts) >= place:
            place, (kind, _, options) = len(point.parts), second.split(maxsplit=2)
    if not kind.startswith(_NETWORK):
        return True
    said = options.split(",")
    return (kind.startswith("nfs") and "local_lock=none" in said) or (kind == "lustre" and "flock" in said)
