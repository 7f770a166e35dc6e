"""Where tensors go: one way to say it, and one error for what is not there."""

from __future__ import annotations

import torch

__all__ = ["pick_device"]


def pick_device(device: str | torch.device | None = "auto") -> torch.device:
    """The device that is meant.

    Parameters
    ----------
    device : str, torch.device or None
        ``"auto"`` (or None): cuda, else mps, else cpu.

    Returns
    -------
    torch.device

    Raises
    ------
    ValueError
        If torch knows no such device, or this machine has none.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if device is None or device == "auto":
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"unknown device {device!r}: give 'auto', 'cpu', 'cuda', 'cuda:1', 'mps' or a torch.device"
        ) from error
    n_cuda = torch.cuda.device_count() if cuda else 0
    if (found.type == "cuda" and (found.index or 0) >= n_cuda) or (found.type == "mps" and not mps):
        raise ValueError(
            f"there is no device {str(found)!r}: torch {torch.__version__} sees {n_cuda} CUDA devices"
            f"{' and mps' if mps else ''}; give 'auto' or 'cpu'"
        )
    return found
