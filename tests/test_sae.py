"""The reader of SAELens folders: against formulas row by row, and against SAELens where it is installed."""

from __future__ import annotations

import importlib.util
import json

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from interp.sae import ARCHITECTURES, NORMALISATIONS, SAE

D, N = 12, 40


def weights(seed: int = 0, jumprelu: bool = False) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    out = {
        "W_enc": torch.randn(D, N, generator=g),
        "b_enc": torch.randn(N, generator=g) * 0.3,
        "W_dec": torch.randn(N, D, generator=g) * torch.rand(N, 1, generator=g) * 3,
        "b_dec": torch.randn(D, generator=g),
    }
    if jumprelu:
        out["threshold"] = torch.rand(N, generator=g)
    return out


def config(architecture: str, **more) -> dict:
    return {"architecture": architecture, "d_in": D, "d_sae": N, "dtype": "float32"} | (
        {"k": 5} if architecture == "topk" else {}
    ) | more  # fmt: skip


def make(architecture: str, seed: int = 0, **more) -> SAE:
    return SAE(weights(seed, architecture == "jumprelu"), config(architecture, **more))


def acts(n: int = 33, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed)) * 2


def encode_row_by_row(sae: SAE, x: torch.Tensor) -> np.ndarray:
    """The table of formulas of interp.sae, one row and one latent at a time, in float64."""
    w = {k: getattr(sae, k).double().numpy() for k in ("W_enc", "b_enc", "W_dec", "b_dec")}
    out = np.zeros((len(x), sae.n_latents))
    for i, row in enumerate(x.double().numpy()):
        if sae.normalisation == "layer_norm":
            centred = row - row.mean()
            row = centred / (np.sqrt((centred**2).sum() / (D - 1)) + 1e-5)
        elif sae.normalisation == "constant_norm_rescale":
            row = row * np.sqrt(D) / np.sqrt((row**2).sum())
        if sae.apply_b_dec_to_input:
            row = row - w["b_dec"]
        z = np.array([row @ w["W_enc"][:, j] + w["b_enc"][j] for j in range(sae.n_latents)])
        if sae.rescale:
            z = z * np.sqrt((w["W_dec"] ** 2).sum(axis=1))
        if sae.architecture == "topk":
            keep = np.argsort(-z)[: sae.k]
        elif sae.architecture == "jumprelu":
            keep = np.flatnonzero(z > sae.threshold.numpy())
        else:
            keep = np.arange(sae.n_latents)
        out[i, keep] = np.maximum(z[keep], 0)
    return out


CASES = [
    *[(a, {"apply_b_dec_to_input": b}) for a in ARCHITECTURES for b in (True, False)],
    *[(a, {"normalize_activations": n}) for a in ARCHITECTURES for n in NORMALISATIONS[1:]],
    ("topk", {"rescale_acts_by_decoder_norm": True}),
]


@pytest.mark.parametrize(("architecture", "more"), CASES)
def test_codes_follow_the_formulas(architecture, more):
    sae, x = make(architecture, **more), acts()
    expected = encode_row_by_row(sae, x)
    np.testing.assert_allclose(sae.encode(x).numpy(), expected, rtol=1e-5, atol=1e-5)
    csr = sae.encode_csr(x, batch=7)
    np.testing.assert_allclose(csr.toarray(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_csr_is_the_dense_code_without_zeros(architecture):
    sae, x = make(architecture), acts(50)
    csr = sae.encode_csr(x, batch=16)
    assert isinstance(csr, scipy.sparse.csr_matrix)
    assert csr.dtype == np.float32
    assert csr.indices.dtype == np.int32
    assert csr.shape == (50, N)
    assert (csr.data > 0).all()
    assert all(
        (np.diff(csr.indices[a:b]) > 0).all() for a, b in zip(csr.indptr[:-1], csr.indptr[1:], strict=True)
    )
    np.testing.assert_allclose(csr.toarray(), sae.encode(x).numpy(), rtol=1e-6, atol=1e-6)


@given(n=st.integers(0, 20), batch=st.integers(1, 9))
def test_csr_does_not_depend_on_the_batch(n, batch):
    sae, x = make("topk"), acts(20)[:n]
    one, other = sae.encode_csr(x), sae.encode_csr(x, batch=batch)
    assert one.shape == other.shape == (n, N)
    assert (one.indptr == other.indptr).all()
    assert (one.indices == other.indices).all()
    np.testing.assert_allclose(one.data, other.data, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "more"), CASES)
def test_decode_undoes_the_normalisation(architecture, more):
    sae, x = make(architecture, **more), acts()
    code = sae.encode(x)
    scaled = code / sae.W_dec.norm(dim=1) if sae.rescale else code
    expected = scaled @ sae.W_dec + sae.b_dec
    if sae.normalisation == "layer_norm":
        expected = expected * x.std(dim=1, keepdim=True) + x.mean(dim=1, keepdim=True)
    elif sae.normalisation == "constant_norm_rescale":
        expected = expected * x.norm(dim=1, keepdim=True) / D**0.5
    torch.testing.assert_close(sae.decode(code, like=x), expected)
    if sae.normalisation != "none":
        with pytest.raises(ValueError, match="pass like="):
            sae.decode(code)


def test_leading_dimensions_numpy_and_half_precision_are_taken():
    sae, x = make("topk"), acts(24)
    torch.testing.assert_close(sae.encode(x.reshape(2, 3, 4, D)).reshape(24, N), sae.encode(x))
    torch.testing.assert_close(sae.encode(x.numpy()), sae.encode(x))
    half = x.bfloat16()
    torch.testing.assert_close(sae.encode(half), sae.encode(half.float()))


def test_save_and_load_give_the_same_codes(tmp_path):
    sae = make("jumprelu", metadata={"hook_name": "blocks.2.hook_resid_post"})
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    assert again.site == "resid_post.2"
    assert again.architecture == "jumprelu"
    assert torch.equal(again.encode(acts()), sae.encode(acts()))
    sae.save(tmp_path / "sae")
    assert [p.name for p in tmp_path.iterdir()] == ["sae"], "nothing temporary is left"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_on_another_device_it_is_the_same(architecture):
    sae = make(architecture)
    there = sae.to("cuda" if torch.cuda.is_available() else "cpu")
    assert repr(there) == repr(sae)
    assert repr(sae).startswith(f"SAE({architecture!r}, d_in={D}, n_latents={N}")
    x = acts()
    torch.testing.assert_close(there.encode(x).cpu(), sae.encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        there.decode(there.encode(x)).cpu(), sae.decode(sae.encode(x)), rtol=1e-4, atol=1e-3
    )


def test_weights_in_bfloat16_are_computed_in_float32(tmp_path):
    rounded = {k: v.bfloat16() for k, v in weights().items()}
    save_file(rounded, tmp_path / "sae_weights.safetensors")
    (tmp_path / "cfg.json").write_text(json.dumps(config("topk", dtype="bfloat16")))
    sae = SAE.load(tmp_path)
    assert sae.W_enc.dtype == torch.float32
    exact = SAE({k: v.float() for k, v in rounded.items()}, config("topk"))
    assert torch.equal(sae.encode(acts()), exact.encode(acts()))


def test_folders_from_before_version_6_are_understood():
    old = {
        "d_in": D, "d_sae": N, "hook_name": "blocks.7.hook_mlp_out", "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3}, "normalize_activations": False,
    }  # fmt: skip
    sae = SAE(weights(), old)
    assert (sae.architecture, sae.k, sae.site) == ("topk", 3, "mlp_out.7")
    assert sae.apply_b_dec_to_input, "the default of SAELens"
    assert SAE(weights(), {"hook_point": "blocks.0.hook_resid_pre"}).site == "resid_pre.0"
    assert SAE(weights(), {"hook_name": "blocks.0.attn.hook_z"}).site is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gated"}, "'gated' is not supported, expected one of standard, topk, jumprelu"),
        ({"architecture": "standard", "activation_fn_str": "tanh-relu"}, "'tanh-relu' is not supported"),
        ({"normalize_activations": "expected_average_only_in"}, "fold them into the weights"),
        ({"normalize_activations": True}, "fold them into the weights"),
        ({"k": None}, "needs an integer k"),
        ({"k": N + 1}, f"k is {N + 1}, expected 1 to {N}"),
        ({"reshape_activations": "fancy"}, "'fancy' is not supported"),
        ({"rescale_acts_by_decoder_norm": "false"}, "rescale_acts_by_decoder_norm is 'false', expected true"),
        ({"architecture": "standard", "rescale_acts_by_decoder_norm": 0}, "decoder_norm is 0, expected true"),
        ({"apply_b_dec_to_input": "False"}, "apply_b_dec_to_input is 'False', expected true or false"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input is None, expected true or false"),
        ({"normalize_activations": 0}, "normalize_activations 0 needs"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        SAE(weights(), config("topk") | change)


def test_bad_weights_and_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"cfg\.json is missing"):
        SAE.load(tmp_path)
    short = weights()
    del short["b_dec"]
    with pytest.raises(ValueError, match=r"\['b_dec'\] are missing"):
        SAE(short, config("topk"))
    with pytest.raises(ValueError, match="b_enc has shape"):
        SAE(weights() | {"b_enc": torch.zeros(N + 1)}, config("topk"))
    with pytest.raises(ValueError, match="threshold holds NaN"):
        SAE(weights(jumprelu=True) | {"threshold": torch.full((N,), torch.nan)}, config("jumprelu"))
    with pytest.raises(ValueError, match="scaling_factor"):
        SAE(weights() | {"scaling_factor": torch.full((N,), 2.0)}, config("topk"))


def test_bad_activations_are_refused():
    sae = make("topk")
    with pytest.raises(ValueError, match=rf"shape \(4, 5\), expected \(\.\.\., {D}\)"):
        sae.encode(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="expected"):
        sae.encode_csr(torch.zeros(2, 3, D))
    with pytest.raises(ValueError, match="batch is 0, expected at least 1"):
        sae.encode_csr(acts(), batch=0)
    x = acts(30)
    x[23, 4] = torch.nan
    with pytest.raises(ValueError, match="row 23 are not finite"):
        sae.encode_csr(x, batch=8)


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae_lens is not installed")
@pytest.mark.parametrize(("architecture", "more"), CASES)
def test_sae_lens_gives_the_same_codes_from_the_same_folder(architecture, more, tmp_path):
    from sae_lens import SAE as Theirs

    more = {"reshape_activations": "none", "metadata": {"sae_lens_version": "6.0.0"}} | more
    ours, x = make(architecture, **more), acts()
    ours.save(tmp_path / "sae")
    theirs = Theirs.load_from_disk(tmp_path / "sae")
    code = theirs.encode(x)
    torch.testing.assert_close(ours.encode(x), code, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.decode(code.detach(), like=x), theirs.decode(code), rtol=1e-4, atol=1e-4)
