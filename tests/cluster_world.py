"""Row shards made of seeds, for tasks in other processes; some of them misbehave, as told by their seed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp

N_LATENTS, N_CLASSES = 24, 6


def shard(seed: int, n_rows: int = 300) -> tuple[sp.csr_array, np.ndarray]:
    """Rows whose latents prefer a class of their own."""
    rng = np.random.default_rng(seed)
    y = rng.choice(N_CLASSES, n_rows, p=np.arange(1, N_CLASSES + 1) / 21)
    own = np.arange(N_LATENTS) % N_CLASSES
    fires = rng.random((n_rows, N_LATENTS)) < np.where(y[:, None] == own, 0.5, 0.15)
    value = rng.lognormal(0.0, 0.8, fires.shape)
    return sp.csr_array((fires * value).astype(np.float32)), y


def in_parts(seed: int) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
    """The rows of `shard`, in two parts."""
    x, y = shard(seed)
    yield x[:100], y[:100]
    yield x[100:], y[100:]


def nothing(seed: int) -> Iterator[tuple[sp.csr_array, np.ndarray]]:
    """No rows at all."""
    return iter(())


def slow(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """A tenth of a second of work."""
    time.sleep(0.1)
    return shard(seed)


def _first_time(seed: int) -> bool:
    """Whether a seed is asked for the first time, ever: kept in a folder that the environment names."""
    try:
        Path(os.environ["CLUSTER_WORLD"], str(seed)).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def fails_once(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """Raises the first time that seed 2 is asked for."""
    if seed == 2 and _first_time(seed):
        raise OSError("the disk hiccuped")
    return shard(seed)


def always_fails(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """Raises for seed 2."""
    if seed == 2:
        raise OSError("the disk is gone")
    return shard(seed)


def dies_once(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """Takes its process down, the first time that seed 2 is asked for."""
    if seed == 2 and _first_time(seed):
        os.kill(os.getpid(), signal.SIGKILL)
    return shard(seed)


def waits(seed: int) -> tuple[sp.csr_array, np.ndarray]:
    """Waits until the file ``go`` is there."""
    deadline = time.monotonic() + 60
    while not Path(os.environ["CLUSTER_WORLD"], "go").exists():
        if time.monotonic() > deadline:
            raise TimeoutError("nobody said go")
        time.sleep(0.02)
    return shard(seed)
