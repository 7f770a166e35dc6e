"""Keys and values of generated tokens, written in place.

transformers' dynamic cache makes a new tensor of all keys and values at every step: for a batch of prompts
that is a large part of a step's time and twice its memory. Here the room for all new tokens is made once.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

__all__ = ["reserve"]


class _Reserved(DynamicLayer):
    """A layer's keys and values with room for tokens to come.

    Parameters
    ----------
    layer : DynamicLayer
        Filled by the prompts' pass.
    room : int
        Tokens to come.
    """

    def __init__(self, layer: DynamicLayer, room: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        keys, values = layer.keys, layer.values
        assert keys is not None  # an initialized layer has both
        assert values is not None
        self._make_room(keys, values, room)

    def _make_room(self, keys: Tensor, values: Tensor, room: int) -> None:
        self._used, self._room = keys.shape[-2], room
        self._buffers = []
        for x in (keys, values):
            buffer = x.new_empty(*x.shape[:-2], self._used + room, x.shape[-1])
            buffer[..., : self._used, :] = x
            self._buffers.append(buffer)
        self.keys, self.values = (b[..., : self._used, :] for b in self._buffers)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values behind the others; return all of them."""
        start, self._used = self._used, self._used + key_states.shape[-2]
        self._room -= key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start : self._used, :] = new
        self.keys, self.values = (b[..., : self._used, :] for b in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some prompts of the batch."""
        keys, values = (b[..., : self._used, :][indices] for b in self._buffers)
        self._make_room(keys, values, self._room)


def reserve(cache: Any, room: int) -> Any:
    """Make room in every layer of a cache that only ever grows; others stay as they are.

    Parameters
    ----------
    cache : transformers.Cache or None
        Changed in place.
    room : int
        Tokens that will be added.

    Returns
    -------
    object
        The cache.
    """
    for i, layer in enumerate(getattr(cache, "layers", ())):
        if type(layer) is DynamicLayer and layer.is_initialized:
            cache.layers[i] = _Reserved(layer, room)
    return cache
