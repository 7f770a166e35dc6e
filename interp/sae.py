"""Read a sparse autoencoder from a SAELens folder and encode activations to sparse codes.

The folder holds ``cfg.json`` and ``sae_weights.safetensors`` (``W_enc [d_in, n_latents]``, ``b_enc
[n_latents]``, ``W_dec [n_latents, d_in]``, ``b_dec [d_in]``, for JumpReLU also ``threshold
[n_latents]``), as SAELens 4 to 6 writes it. SAELens itself is not needed.

With x̂ the normalised input (``normalize_activations``) and x̃ = x̂ − b_dec if ``apply_b_dec_to_input``,
else x̂:

====================  =====================================================================
architecture          code
====================  =====================================================================
``standard``          relu(x̃ W_enc + b_enc)
``topk``              the k largest entries of x̃ W_enc + b_enc, those below 0 set to 0; with
                      ``rescale_acts_by_decoder_norm`` entry l is multiplied by ‖W_dec[l]‖ first
``jumprelu``          relu(z) where z = x̃ W_enc + b_enc > threshold, else 0
====================  =====================================================================
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import scipy.sparse
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from interp.device import pick_device
from interp.files import digest, whole, write_text

ARCHITECTURES = ("standard", "topk", "jumprelu")
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")

_CFG, _WEIGHTS = "cfg.json", "sae_weights.safetensors"
_HASH = "interp_sha256"
#: Their names of hook points, and ours of sites.
_SITES = {
    "hook_resid_pre": "resid_pre", "hook_resid_mid": "resid_mid", "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out", "hook_mlp_out": "mlp_out", "mlp.hook_post": "mlp_act",
    "attn.hook_q": "q", "attn.hook_k": "k", "attn.hook_v": "v",
}  # fmt: skip


class SAE:
    """A sparse autoencoder: encode activations of one site, decode codes.

    Make one with :meth:`load`. Everything is computed in float32, whatever the stored dtype.

    Parameters
    ----------
    weights : mapping of str to Tensor
        ``W_enc``, ``b_enc``, ``W_dec``, ``b_dec`` and, for ``jumprelu``, ``threshold``; shapes as above.
    cfg : mapping
        The fields of ``cfg.json``. Read are ``architecture``, ``k``, ``apply_b_dec_to_input``,
        ``normalize_activations``, ``rescale_acts_by_decoder_norm``, ``reshape_activations`` and
        ``metadata``; the forms of SAELens before version 6 (``activation_fn_str``, ``hook_name`` at the
        top) are understood.

    Attributes
    ----------
    architecture : str
        One of :data:`ARCHITECTURES`.
    d_in, n_latents : int
        Width of the activations and of the code.
    k : int or None
        Most non-zeros per row, for ``topk``.
    hook_name : str or None
        Where it was trained, in SAELens' words (``blocks.3.hook_resid_post``).
    site : str or None
        The same in ours (``resid_post.3``), None if there is no such site.
    cfg : dict
        The whole ``cfg.json``.

    Raises
    ------
    ValueError
        For an architecture or a normalisation that this class does not compute, a field of another type than
        it has in SAELens, or weights that are missing, of the wrong shape, or not finite.
    """

    def __init__(self, weights: Mapping[str, torch.Tensor], cfg: Mapping):
        self.cfg = dict(cfg)
        metadata = self.cfg.get("metadata") or {}
        self.architecture, self.k = _architecture(self.cfg)
        self.apply_b_dec_to_input = _flag(self.cfg, "apply_b_dec_to_input", True)
        self.normalisation = _normalisation(self.cfg)
        self.rescale = _flag(self.cfg, "rescale_acts_by_decoder_norm", False) and self.architecture == "topk"
        self.hook_name = metadata.get("hook_name") or self.cfg.get("hook_name") or self.cfg.get("hook_point")
        self.site = _site(self.hook_name)
        needed = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (self.architecture == "jumprelu")
        missing = [name for name in needed if name not in weights]
        if missing:
            raise ValueError(f"weights {missing} are missing, found {sorted(weights)}")
        scale = weights.get("scaling_factor")
        if scale is not None and not torch.allclose(scale.float(), torch.ones_like(scale.float())):
            raise ValueError(
                "the weights hold a fine-tuning scaling_factor other than 1; fold it into them first"
            )
        self.W_enc, self.b_enc, self.W_dec, self.b_dec, *rest = (
            weights[name].detach().to(torch.float32).contiguous() for name in needed
        )
        self.threshold = rest[0] if rest else None
        if self.W_enc.ndim != 2:
            raise ValueError(f"W_enc has shape {tuple(self.W_enc.shape)}, expected (d_in, n_latents)")
        self.d_in, self.n_latents = self.W_enc.shape
        shapes = {"b_enc": (self.n_latents,), "W_dec": (self.n_latents, self.d_in), "b_dec": (self.d_in,)}
        if self.threshold is not None:
            shapes["threshold"] = (self.n_latents,)
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name} has shape {tuple(getattr(self, name).shape)}, W_enc asks for {shape}"
                )
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            if not torch.isfinite(getattr(self, name)).all():
                raise ValueError(f"{name} holds numbers that are not finite: every code would be wrong")
        if self.threshold is not None and self.threshold.isnan().any():  # infinity switches a latent off
            raise ValueError("threshold holds NaN: such latents would never fire")
        if self.k is not None and not 1 <= self.k <= self.n_latents:
            raise ValueError(f"k is {self.k}, expected 1 to {self.n_latents}")
        self._norm = self.W_dec.norm(dim=-1) if self.rescale else None

    def __repr__(self) -> str:
        k = f", k={self.k}" if self.k else ""
        return (
            f"SAE({self.architecture!r}, d_in={self.d_in}, n_latents={self.n_latents}{k}, site={self.site!r})"
        )

    # -- files

    @classmethod
    def load(cls, folder: str | os.PathLike[str], device: str | torch.device | None = "cpu") -> SAE:
        """Read a SAELens folder.

        Parameters
        ----------
        folder : path
            Holds ``cfg.json`` and ``sae_weights.safetensors``.
        device : str or torch.device, optional
            Where the weights go; "auto" (or None) as in `interp.load_model`.

        Returns
        -------
        SAE

        Raises
        ------
        FileNotFoundError
            If one of the two files is missing.
        ValueError
            As the class, or if there is no such device, or a file is damaged; the folder is named. Files that
            `save` wrote hold a hash of the weights and of ``cfg.json``, and are compared with it.
        """
        folder, place = Path(folder), pick_device(device)
        for name in (_CFG, _WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder / name} is missing: a SAELens folder holds {_CFG} and {_WEIGHTS}"
                )
        try:
            cfg = json.loads((folder / _CFG).read_bytes())
            with safe_open(folder / _WEIGHTS, framework="pt", device=str(place)) as file:
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                said = (file.metadata() or {}).get(_HASH)
            if said is not None and said != _hash(cfg, weights):
                raise ValueError(f"{_WEIGHTS} and {_CFG} do not match the hash that was saved with them")
            return cls(weights, cfg)
        except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the autoencoder in {folder} cannot be read: {error}") from error

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write a SAELens folder; the two files replace those that are there, each whole.

        Parameters
        ----------
        folder : path

        Raises
        ------
        OSError
            If the disk does not take them.
        """
        folder = Path(folder)
        cfg = {**self.cfg, "dtype": "float32"}
        names = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (self.threshold is not None)
        weights = {name: getattr(self, name).cpu().contiguous() for name in names}
        with whole(folder / _WEIGHTS) as part:
            save_file(weights, part, metadata={_HASH: _hash(cfg, weights)})
        write_text(folder / _CFG, json.dumps(cfg, indent=2) + "\n")

    def to(self, device: str | torch.device) -> SAE:
        """The same autoencoder with its weights on another device."""
        names = ["W_enc", "b_enc", "W_dec", "b_dec"] + ["threshold"] * (self.threshold is not None)
        return SAE({name: getattr(self, name).to(device) for name in names}, self.cfg)

    # -- encoding

    @torch.no_grad()
    def encode(self, acts: torch.Tensor | np.ndarray) -> torch.Tensor:
        """Dense code of activations.

        Parameters
        ----------
        acts : Tensor or ndarray, shape [..., d_in]
            Activations of the site the autoencoder was trained on, in any float dtype.

        Returns
        -------
        Tensor of float32, shape [..., n_latents]
            On the device of the weights.

        Raises
        ------
        ValueError
            If the last dimension is not ``d_in``.
        """
        x, _ = self._normalise(self._as_input(acts))
        z = self._pre_activations(x)
        if self.k is not None:
            values, index = torch.topk(z, self.k, dim=-1, sorted=False)
            return torch.zeros_like(z).scatter_(-1, index, values.relu_())
        if self.threshold is not None:
            z = torch.where(z > self.threshold, z, torch.zeros_like(z))
        return z.relu_()

    @torch.no_grad()
    def encode_csr(self, acts: torch.Tensor | np.ndarray, batch: int = 4096) -> scipy.sparse.csr_matrix:
        """Sparse code of activations, without ever holding the dense code of more than one batch.

        Parameters
        ----------
        acts : Tensor or ndarray, shape [n_rows, d_in]
        batch : int
            Rows encoded at once; 4,096 rows × 2,048 latents are 32 MB.

        Returns
        -------
        scipy.sparse.csr_matrix of float32, shape [n_rows, n_latents]
            Sorted column indices, no stored zeros.

        Raises
        ------
        ValueError
            If the shape is wrong, or activations are not finite (the first such row is named).
        """
        if acts.ndim != 2:
            raise ValueError(f"activations have shape {tuple(acts.shape)}, expected (n_rows, {self.d_in})")
        if batch < 1:
            raise ValueError(f"batch is {batch}, expected at least 1")
        values, columns = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        indptr = np.zeros(len(acts) + 1, dtype=np.int64)
        for start in range(0, len(acts), batch):
            x = self._as_input(acts[start : start + batch])
            bad = ~torch.isfinite(x).all(dim=1)
            if bad.any():
                row = start + int(bad.nonzero()[0, 0])
                raise ValueError(
                    f"activations of row {row} are not finite; drop such rows or load the model in float32"
                )
            value, column, length = self._sparse(x)
            values.append(value)
            columns.append(column)
            indptr[start + 1 : start + 1 + len(length)] = length
        # scipy narrows the index arrays to int32 where that suffices
        arrays = (np.concatenate(values), np.concatenate(columns), np.cumsum(indptr))
        csr = scipy.sparse.csr_matrix(arrays, shape=(len(acts), self.n_latents), dtype=np.float32)
        csr.has_sorted_indices = True
        return csr

    def _sparse(self, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Values, columns and row lengths of the code of finite rows."""
        if self.k is not None:
            z = self._pre_activations(self._normalise(x)[0])
            value, column = torch.topk(z, self.k, dim=-1, sorted=False)
            column, order = column.sort(dim=-1)
            value = value.gather(-1, order)
            keep = value > 0
            return value[keep].cpu().numpy(), column[keep].cpu().numpy(), keep.sum(dim=1).cpu().numpy()
        code = self.encode(x)
        keep = code > 0
        return code[keep].cpu().numpy(), keep.nonzero()[:, 1].cpu().numpy(), keep.sum(dim=1).cpu().numpy()

    @torch.no_grad()
    def decode(self, code: torch.Tensor, like: torch.Tensor | np.ndarray | None = None) -> torch.Tensor:
        """Activations that a code stands for.

        Parameters
        ----------
        code : Tensor, shape [..., n_latents]
        like : Tensor or ndarray, shape [..., d_in], optional
            The activations that were encoded; needed where the input was normalised by its own norm or
            mean, which the code no longer holds.

        Returns
        -------
        Tensor of float32, shape [..., d_in]

        Raises
        ------
        ValueError
            If the code is sparse or of another width, or ``like`` is needed and not given.
        """
        if scipy.sparse.issparse(code):
            raise ValueError(
                "decode takes a dense code: torch.from_numpy(code.toarray()), some rows at a time"
            )
        if code.shape[-1:] != (self.n_latents,):
            raise ValueError(f"the code has shape {tuple(code.shape)}, expected (..., {self.n_latents})")
        code = code.to(self.W_dec)
        if self._norm is not None:
            code = code / self._norm
        out = code @ self.W_dec + self.b_dec
        if self.normalisation == "none":
            return out
        if like is None:
            raise ValueError(
                f"inputs are normalised by {self.normalisation!r}: pass like=, the activations encoded"
            )
        _, (shift, scale) = self._normalise(self._as_input(like))
        return out * scale + shift

    def _as_input(self, acts: torch.Tensor | np.ndarray) -> torch.Tensor:
        x = torch.as_tensor(acts).to(device=self.W_enc.device, dtype=torch.float32)
        if x.shape[-1:] != (self.d_in,):
            raise ValueError(f"activations have shape {tuple(x.shape)}, expected (..., {self.d_in})")
        return x

    def _normalise(
        self, x: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor | float, torch.Tensor | float]]:
        """The normalised input, and what takes it back: ``x = out * scale + shift``."""
        if self.normalisation == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            std = (x - mean).std(dim=-1, keepdim=True)
            return (x - mean) / (std + 1e-5), (mean, std)
        if self.normalisation == "constant_norm_rescale":
            scale = x.norm(dim=-1, keepdim=True) / self.d_in**0.5
            return x / scale.clamp_min(torch.finfo(x.dtype).tiny), (0.0, scale)  # 0 stays 0
        return x, (0.0, 1.0)

    def _pre_activations(self, x: torch.Tensor) -> torch.Tensor:
        if self.apply_b_dec_to_input:
            x = x - self.b_dec
        z = x @ self.W_enc + self.b_enc
        return z if self._norm is None else z * self._norm


def _hash(cfg: Mapping, weights: Mapping[str, torch.Tensor]) -> str:
    kinds = {name: [str(v.dtype), list(v.shape)] for name, v in weights.items()}
    raw = {name: v.cpu().reshape(-1).view(torch.uint8).numpy() for name, v in weights.items()}
    return digest({"cfg": cfg, "kinds": kinds}, raw)


def _architecture(cfg: Mapping) -> tuple[str, int | None]:
    """Architecture and k; before version 6, TopK was a standard one with another activation function."""
    name, k = cfg.get("architecture", "standard"), cfg.get("k")
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if name == "standard" and activation == "topk":
        name, k = "topk", (cfg.get("activation_fn_kwargs") or {}).get("k")
    elif name == "standard" and activation != "relu":
        raise ValueError(f"activation function {activation!r} is not supported, expected relu or topk")
    if name not in ARCHITECTURES:
        raise ValueError(
            f"architecture {name!r} is not supported, expected one of {', '.join(ARCHITECTURES)}"
        )
    if cfg.get("reshape_activations", "none") not in ("none", "hook_z"):
        raise ValueError(f"reshape_activations {cfg['reshape_activations']!r} is not supported")
    if name == "topk" and (not isinstance(k, int) or isinstance(k, bool)):
        raise ValueError(f"a topk autoencoder needs an integer k, cfg.json has {k!r}")
    return name, k if name == "topk" else None


def _flag(cfg: Mapping, name: str, default: bool) -> bool:
    """A field that is true or false: a string such as "false" would count as true."""
    value = cfg.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}, expected true or false: correct it in cfg.json")
    return value


def _normalisation(cfg: Mapping) -> str:
    name = cfg.get("normalize_activations", "none")
    if name is None or isinstance(name, bool):  # in old folders it is yes or no
        name = "expected_average_only_in" if name else "none"
    if name not in NORMALISATIONS:
        raise ValueError(
            f"normalize_activations {name!r} needs statistics that the folder does not hold, expected one of "
            f"{', '.join(NORMALISATIONS)}: fold them into the weights with SAELens and save again"
        )
    return name


def _site(hook_name: str | None) -> str | None:
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)", hook_name or "")
    if found and found[2] in _SITES:
        return f"{_SITES[found[2]]}.{found[1]}"
    return "embed" if hook_name == "hook_embed" else None
