"""Work shared out among threads of our own, each with one torch thread and without Python's lock.

Torch's own threads meet at a barrier after every product: on a machine with other work to do that costs ten
times what the parallelism gains. Here each thread has whole pieces of work, and waits for nobody. Small torch
operations hand Python's lock to and fro, though, and two threads of them are no faster than one; hence
`without_gil`.
"""

from __future__ import annotations

import inspect
import os
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, wraps
from typing import Any, TypeVar

import torch

__all__ = ["n_threads", "shared", "torch_threads", "without_gil"]

T = TypeVar("T")


def n_threads(device: torch.device | None = None) -> int:
    """Threads to share work among: as many as torch has on the CPU, one for any other device."""
    return torch.get_num_threads() if device is None or device.type == "cpu" else 1


def shared(
    work: Callable[..., T],
    items: Iterable[tuple[Any, ...]],
    threads: int,
    given_up: threading.Event | None = None,
) -> Generator[T, None, None]:
    """``work(*item)`` of every item, in order; a few items ahead of whoever takes the results.

    Parameters
    ----------
    work : callable
        Must not call `shared` itself.
    items : iterable of tuple
        Taken one after the other as threads become free.
    threads : int
        1 runs everything in the calling thread.
    given_up : threading.Event, optional
        Set when nobody wants the rest, or after an error, before work under way is waited for.

    Yields
    ------
    What `work` returned. Torch has as many threads of its own then as it had before.
    """
    left = iter(items)
    if threads < 2:
        for item in left:
            with torch_threads(1):
                done = work(*item)
            yield done
        return
    waiting: deque[Future[T]] = deque()
    try:
        while True:
            with torch_threads(1):
                while not waiting or not (waiting[0].done() or len(waiting) > 2 * threads):
                    item = next(left, None)  # type: ignore[arg-type]
                    if item is None:
                        break
                    waiting.append(_pool(threads).submit(work, *item))
                if not waiting:
                    return
                done = waiting[0].result()
                waiting.popleft()
            yield done
    finally:  # after an error, or when nobody wants the rest: leave no work behind
        if given_up is not None:
            given_up.set()
        for future in waiting:
            future.cancel()
        for future in waiting:
            if not future.cancelled():
                future.exception()


def without_gil(function: Callable[..., T]) -> Callable[..., T]:
    """`function`, run by TorchScript's interpreter, which needs no Python and lets other threads use it.

    The operations and their results are the same. TorchScript is on its way out of torch: where a version no
    longer has it, the function runs as it is, with less gain from a second thread.
    """
    compiled: Callable[..., T] | None = None
    lock = threading.Lock()

    @wraps(function)
    def call(*args: Any) -> T:
        nonlocal compiled
        with lock:
            if compiled is None:
                compiled = _compiled(function)
        return compiled(*args)

    return call


def _compiled(function: Callable[..., T]) -> Callable[..., T]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is deprecated
            script = torch.jit.script(function)
    except (AttributeError, NotImplementedError, OSError, RuntimeError):
        # A torch without TorchScript, or whose TorchScript has forgotten part of Python; no source to read.
        return function
    if [a.name for a in script.schema.arguments] != list(inspect.signature(function).parameters):
        # The file was edited since it was imported: TorchScript has read what now stands in that place.
        return function

    def run(*args: Any) -> T:
        with torch.jit.optimized_execution(False):  # nothing is to be specialised to these shapes
            return script(*args)

    return run


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Torch with `n` threads of its own inside the block, and with as many as before behind it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(threads, "interp", initializer=torch.set_num_threads, initargs=(1,))
    # All of them start now, while torch has one thread anyway: what one sets, later threads begin with.
    everybody = threading.Barrier(threads)
    deque(pool.map(lambda _: everybody.wait(), range(threads)), maxlen=0)
    return pool


if hasattr(os, "register_at_fork"):  # a child has the pool's object, but not its threads
    os.register_at_fork(after_in_child=_pool.cache_clear)
