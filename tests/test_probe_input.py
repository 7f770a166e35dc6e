"""What a probe takes in: every form of the same data, and clear words for what is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from probe_data import problem

from interp.probe import LatentSummary, Sparse1DProbe
from interp.probe.data import check_shard

X, Y = problem(0, n_rows=200, n_latents=6, n_classes=4)
X64 = X.astype(np.float64)


def _torch_csr(x: sp.csr_array) -> torch.Tensor:
    parts = (x.indptr.astype(np.int64), x.indices.astype(np.int64), x.data)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "beta state"
        return torch.sparse_csr_tensor(*map(torch.from_numpy, parts), size=x.shape)


def _with_explicit_zeros(x: sp.csr_array) -> sp.csr_array:
    rows, columns = np.nonzero(x.toarray() == 0)
    coo = x.tocoo()
    take = slice(0, 50)
    parts = [np.concatenate(p) for p in ((coo.row, rows[take]), (coo.col, columns[take]))]
    data = np.concatenate([coo.data, np.zeros(50, coo.data.dtype)])
    out = sp.csr_array((data, tuple(parts)), shape=x.shape)
    assert (out.data == 0).sum() == 50
    return out


def _with_duplicates(x: sp.csr_array) -> sp.csr_array:
    """Every value in three pieces that add up, and a pair of values that cancel."""
    indptr = 3 * x.indptr
    data = np.column_stack([0.25 * x.data, 0.5 * x.data, 0.25 * x.data]).ravel()
    out = sp.csr_array((data, np.repeat(x.indices, 3), indptr), shape=x.shape)
    assert not out.has_canonical_format
    return out


def _unsorted(x: sp.csr_array) -> sp.csr_array:
    data, indices = x.data.copy(), x.indices.copy()
    for start, stop in zip(x.indptr[:-1], x.indptr[1:], strict=True):
        data[start:stop], indices[start:stop] = (
            data[start:stop][::-1].copy(),
            indices[start:stop][::-1].copy(),
        )
    out = sp.csr_array((data, indices, x.indptr), shape=x.shape)
    assert not out.has_sorted_indices
    return out


FORMS: dict[str, Callable[[], tuple[Any, Any]]] = {
    "csr_matrix": lambda: (sp.csr_matrix(X), Y),
    "csc": lambda: (X.tocsc(), Y),
    "coo": lambda: (X.tocoo(), Y),
    "dense": lambda: (X.toarray(), Y),
    "int64 indices": lambda: (
        sp.csr_array((X.data, X.indices.astype(np.int64), X.indptr.astype(np.int64)), shape=X.shape),
        Y,
    ),
    "float64": lambda: (X64, Y),
    "explicit zeros": lambda: (_with_explicit_zeros(X), Y),
    "negative zeros": lambda: (_negative_zeros(), Y),
    "duplicates": lambda: (_with_duplicates(X), Y),
    "unsorted": lambda: (_unsorted(X), Y),
    "torch": lambda: (_torch_csr(X), torch.from_numpy(Y)),
    "torch float64": lambda: (_torch_csr(X64), torch.from_numpy(Y)),
    "labels as a list": lambda: (X, Y.tolist()),
    "labels uint8": lambda: (X, Y.astype(np.uint8)),
    "labels int8": lambda: (X, Y.astype(np.int8)),
    "labels uint64": lambda: (X, Y.astype(np.uint64)),
    "shards": lambda: ([(X[:50], Y[:50]), (X[50:], Y[50:])], None),
    "generator": lambda: (((X[i : i + 40], Y[i : i + 40]) for i in range(0, 200, 40)), None),
    "empty shards among them": lambda: ([(X[:0], Y[:0]), (X, Y), (X[:0], Y[:0])], None),
    "shards of many kinds": lambda: (
        [
            (X[:50].tocsc(), Y[:50].astype(np.int8)),
            (_torch_csr(X64[50:90]), Y[50:90]),
            (X[90:].toarray(), Y[90:]),
        ],
        None,
    ),
    "multi-label": lambda: (X, sp.csr_array(Y[:, None] == np.arange(4))),
    "multi-label csc of int": lambda: (X, sp.csc_matrix((Y[:, None] == np.arange(4)).astype(int))),
    "multi-label with explicit zeros": lambda: (X, _labels_with_zeros()),
    "multi-label shards": lambda: (
        [(X[i:j], sp.csr_array(Y[i:j, None] == np.arange(4))) for i, j in ((0, 70), (70, 200))],
        None,
    ),
}  # fmt: skip


def _negative_zeros() -> sp.csr_array:
    x = _with_explicit_zeros(X)
    x.data[x.data == 0] = -0.0
    return x


def _labels_with_zeros() -> sp.csr_array:
    everywhere = sp.csr_array(np.ones((200, 4)))
    everywhere.data[:] = (Y[:, None] == np.arange(4)).ravel()
    return everywhere


@pytest.fixture(scope="module")
def plain() -> Sparse1DProbe:
    return Sparse1DProbe().fit(X, Y)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_gives_the_same_probe(form: str, plain: Sparse1DProbe) -> None:
    x, y = FORMS[form]()
    probe = Sparse1DProbe().fit(x, y)
    np.testing.assert_allclose(probe.coef_, plain.coef_, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(probe.intercept_, plain.intercept_, rtol=1e-6, atol=1e-7)
    assert np.array_equal(probe.status_, plain.status_)
    assert np.array_equal(probe.summary_.n_events, plain.summary_.n_events)
    x, y = FORMS[form]()
    counts, want = probe.confusion(x, y), plain.confusion(X, Y)
    assert np.array_equal(counts.tp, want.tp)
    assert np.array_equal(counts.fp, want.fp)
    if form != "generator":
        x, y = FORMS[form]()
        assert probe.certify(x, y).max() <= 1e-5


@pytest.mark.parametrize("dtype", [np.float16, np.int8, np.int64, np.uint16, bool, "torch half"])
def test_other_number_types_mean_what_they_say(dtype: Any) -> None:
    rounded = np.round(X.toarray())
    if dtype == "torch half":
        coarse = _torch_csr(sp.csr_array(rounded)).to(torch.float16)
    elif dtype is np.float16:
        coarse = rounded.astype(dtype)  # SciPy has no sparse float16
    else:
        coarse = sp.csr_array(rounded.astype(dtype))
    probe = Sparse1DProbe().fit(coarse, Y)
    want = Sparse1DProbe().fit((rounded != 0 if dtype is bool else rounded).astype(np.float64), Y)
    np.testing.assert_allclose(probe.coef_, want.coef_, rtol=1e-6, atol=1e-7)


def test_inputs_are_never_changed() -> None:
    for form in ("explicit zeros", "duplicates", "unsorted", "int64 indices"):
        x, y = FORMS[form]()
        before = x.data.copy(), x.indices.copy(), x.indptr.copy(), y.copy()
        flags = x.has_sorted_indices
        probe = Sparse1DProbe().fit(x, y)
        probe.metrics(x, y)
        probe.certify(x, y)
        for now, then in zip((x.data, x.indices, x.indptr, y), before, strict=True):
            assert np.array_equal(now, then)
        assert sp.csr_array((x.data, x.indices, x.indptr), shape=x.shape).has_sorted_indices == flags


def test_read_only_arrays_will_do() -> None:
    x, y = X.copy(), Y.copy()
    for a in (x.data, x.indices, x.indptr, y):
        a.flags.writeable = False
    Sparse1DProbe().fit(x, y).metrics(x, y)


def test_more_classes_than_labels_are_absent() -> None:
    probe = Sparse1DProbe().fit(X, Y, n_classes=6)
    assert probe.coef_.shape == (6, 6)
    assert (probe.status_[:, 4:] == "absent_class").all()


def test_values_next_to_the_smallest_float32() -> None:
    """At 2⁻¹²⁶ a value counts; below it, it is zero."""
    shard = check_shard(np.array([[2.0**-126, 2.0**-127], [-(2.0**-126), -(2.0**-127)]]), [0, 1])
    assert np.array_equal(shard.x.toarray() != 0, [[True, False], [True, False]])


# --------------------------------------------------------------------------------- bad input


def _poke(value: float) -> sp.csr_array:
    x = sp.csr_array(X, copy=True)
    x.data[x.indptr[17] + 0] = value
    return x


ROW17_COLUMN = int(X.indices[X.indptr[17]])

BAD: dict[str, tuple[Callable[[], tuple[Any, Any, dict]], str]] = {
    "NaN": (lambda: (_poke(np.nan), Y, {}), rf"x\[17, {ROW17_COLUMN}\] is nan"),
    "infinity": (lambda: (_poke(np.inf), Y, {}), rf"x\[17, {ROW17_COLUMN}\] is inf"),
    "minus infinity": (lambda: (_poke(-np.inf), Y, {}), rf"x\[17, {ROW17_COLUMN}\] is -inf"),
    "NaN in an unlabelled row": (lambda: (_poke(np.nan), np.where(np.arange(200) == 17, -1, Y), {}), "nan"),
    "NaN in a shard": (lambda: ([(X[:10], Y[:10]), (_poke(np.nan), Y)], None, {}), r"x\[17, .\] is nan"),
    "label below -1": (lambda: (X, np.where(np.arange(200) == 31, -2, Y), {}), r"y\[31\] = -2 is outside"),
    "label too large": (
        lambda: (X, np.where(np.arange(200) == 32, 4, Y), {"n_classes": 4}),
        r"y\[32\] = 4 is outside −1 … 3",
    ),
    "label beyond int32": (lambda: (X, np.where(np.arange(200) == 3, 2**40, Y), {}), r"y\[3\] = 10995116"),
    "too few labels": (lambda: (X, Y[:-1], {}), r"\(199,\).*\(200,\)"),
    "too few label rows": (lambda: (X, sp.csr_array((199, 4)), {}), "199 rows, x has 200"),
    "label columns": (lambda: (X, sp.csr_array((200, 3)), {"n_classes": 4}), "3 classes"),
    "no label columns": (lambda: (X, sp.csr_array((200, 0)), {}), "at least one class"),
    "two-dimensional labels": (lambda: (X, Y[:, None], {}), "expected one class id per row"),
    "float labels": (lambda: (X, Y.astype(float), {}), "dtype float64, expected integer"),
    "text labels": (lambda: (X, Y.astype(str), {}), "expected integer"),
    "no labels": (lambda: (X, None, {}), "y is missing"),
    "duplicates beyond float32": (lambda: (_too_large_together(), Y, {}), rf"x\[17, {ROW17_COLUMN}\] is inf"),
    "shards of other widths": (lambda: ([(X, Y), (X[:, :5], Y)], None, {}), "5 latents .*, expected 6"),
    "shards that are no pairs": (lambda: ([X, X], None, {}), r"pair \(x, y\)"),
    "no shards": (lambda: ([], None, {}), "empty iterable"),
    "no rows": (lambda: (X[:0], Y[:0], {}), "nothing to fit"),
    "no rows, classes given": (lambda: (X[:0], Y[:0], {"n_classes": 3}), "nothing to fit"),
    "no labelled row": (lambda: (X, np.full(200, -1), {}), "nothing to fit"),
    "no columns": (lambda: (sp.csr_array((200, 0)), Y, {}), "at least one latent"),
    "n_classes = 0": (lambda: (X, Y, {"n_classes": 0}), "n_classes must be at least 1, got 0"),
    "complex": (lambda: (X.astype(np.complex128), Y, {}), "dtype complex128"),
    "text": (lambda: ("token_acts.npz", Y, {}), "sparse CSR"),
    "one-dimensional": (lambda: (np.ones(200), Y, {}), "two-dimensional"),
    "dense torch": (lambda: (torch.ones(200, 3), Y, {}), "torch.sparse_csr"),
    "column out of range": (lambda: (_bad_column(6), Y, {}), "column 6 in row"),
    "negative column": (lambda: (_bad_column(-1), Y, {}), "column -1 in row"),
    "falling indptr": (lambda: (_bad_indptr(), Y, {}), "indptr falls at row 1"),
    "label column out of range": (lambda: (X, _bad_label_column(), {}), "y has column 4 in row 3"),
}  # fmt: skip


def _too_large_together() -> sp.csr_array:
    """Finite values, but two of one place."""
    row, columns = np.full(2, 17), np.full(2, ROW17_COLUMN)
    huge = sp.coo_array((np.full(2, 3e38, np.float32), (row, columns)), shape=X.shape)
    both = sp.vstack([X[:17], sp.csr_array((1, 6), dtype=np.float32), X[18:]], format="coo")
    parts = [np.concatenate([getattr(a, k) for a in (both, huge)]) for k in ("data", "row", "col")]
    order = np.argsort(parts[1], kind="stable")
    data, row, columns = (part[order] for part in parts)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=200))])
    return sp.csr_array((data, columns, indptr), shape=X.shape)


def _bad_column(index: int) -> sp.csr_array:
    x = sp.csr_array(X, copy=True)
    x.indices[5] = index
    return x


def _bad_indptr() -> sp.csr_array:
    x = sp.csr_array(X, copy=True)
    x.indptr[1], x.indptr[2] = x.indptr[2] + 1, x.indptr[1]
    return x


def _bad_label_column() -> sp.csr_array:
    labels = sp.csr_array(Y[:, None] == np.arange(4))
    labels.indices[3] = 4
    return labels


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_words_and_change_nothing(case: str) -> None:
    make, words = BAD[case]
    x, y, options = make()
    probe = Sparse1DProbe()
    with pytest.raises(ValueError, match=words):
        probe.fit(x, y, **options)
    assert not hasattr(probe, "n_features_in_"), "a failed fit must not look fitted"
    with pytest.raises(ValueError, match="not fitted"):
        _ = probe.coef_

    probe.fit(X[:100], Y[:100])
    before = {name: np.copy(getattr(probe, name)) for name in STATE}
    x, y, options = make()
    with pytest.raises(ValueError, match=words):
        probe.fit(x, y, **options)
    for name, value in before.items():
        np.testing.assert_array_equal(getattr(probe, name), value)
    assert probe.summary_.n_rows == 100
    assert probe.n_features_in_ == 6


STATE = ("coef_", "intercept_", "status_", "n_iter_", "n_fail_", "lambda_", "loss_")

IN_A_SHARD = [
    k
    for k in BAD
    if k not in ("no labels", "shards that are no pairs", "no shards", "text") and "shard" not in k
]


@pytest.mark.parametrize("case", IN_A_SHARD)
def test_bad_data_leave_a_summary_as_it_was(case: str) -> None:
    make, _ = BAD[case]
    x, y, options = make()
    if options.get("n_classes") == 0 or ("no " in case and "row" in case):
        return
    summary = LatentSummary(6, 4).add(X, Y)
    before = summary.n_rows, summary.label_sums.copy(), summary.nodes()
    with pytest.raises(ValueError, match=r".{10}"):
        summary.add(x, y)
    assert summary.n_rows == before[0]
    assert np.array_equal(summary.label_sums, before[1])
    for now, then in zip(summary.nodes(), before[2], strict=True):
        assert np.array_equal(now, then)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"tol": 0.0}, "tol must be > 0"),
        ({"tol": float("nan")}, "tol must be > 0"),
        ({"ridge": -1e-8}, "ridge must be > 0"),
        ({"lam_init": 0.0}, "lam_init must be > 0"),
        ({"delta_logit": 0.0}, "delta_logit must be > 0"),
        ({"lam_shrink": 2.0}, "lam_shrink"),
        ({"lam_grow": 0.5}, "lam_grow"),
        ({"max_iter": -1}, "max_iter"),
        ({"max_iter": float("nan")}, "max_iter must be an integer"),
        ({"max_iter": 1.5}, "max_iter must be an integer"),
        ({"max_retries": -1}, "max_retries"),
        ({"class_slab_size": True}, "class_slab_size must be"),
        ({"method": "magic"}, "method must be"),
        ({"class_slab_size": 0}, "class_slab_size must be"),
        ({"latent_block_size": "big"}, "latent_block_size must be"),
        ({"row_batch_size": 1.5}, "row_batch_size must be"),
    ],
    ids=str,
)
def test_bad_parameters_are_refused_at_fit_and_change_nothing(params: dict[str, Any], words: str) -> None:
    probe = Sparse1DProbe(**params)  # scikit-learn's convention: the constructor only stores
    with pytest.raises(ValueError, match=words):
        probe.fit(X, Y)
    with pytest.raises(ValueError, match=words):
        probe.fit_summary(LatentSummary(6, 4).add(X, Y))
    probe = Sparse1DProbe().fit(X, Y)
    before = probe.coef_.copy()
    with pytest.raises(ValueError, match=words):
        probe.set_params(**params).fit(X, Y)
    assert np.array_equal(probe.coef_, before)


@pytest.mark.parametrize("rows", [0, -1])
def test_no_rows_at_a_time_are_refused(rows: int) -> None:
    summary = LatentSummary(6, 4)
    with pytest.raises(ValueError, match=f"row_batch_size must be at least 1, got {rows}"):
        summary.add(X, Y, row_batch_size=rows)
    assert summary.n_rows == 0


@pytest.mark.parametrize("pairs", [[[0.7, 1.9]], [[True, False]], [0, 1], [["0", "1"]]])
def test_pairs_to_certify_are_integers(pairs: Any) -> None:
    probe = Sparse1DProbe().fit(X, Y)
    with pytest.raises(ValueError, match="pairs must be integers of shape"):
        probe.certify(X, Y, pairs)
    assert len(probe.certify(X, Y, np.zeros((0, 2))).scaled) == 0


def test_events_need_data_that_can_be_read_again() -> None:
    with pytest.raises(ValueError, match="more than once"):
        Sparse1DProbe(method="events").fit((X, Y) for _ in range(1))
    with pytest.raises(ValueError, match='needs method="summary"'):
        Sparse1DProbe(method="events").fit_summary(LatentSummary(6, 4).add(X, Y))


def test_fit_summary_refuses_an_empty_summary() -> None:
    with pytest.raises(ValueError, match="nothing to fit"):
        Sparse1DProbe().fit_summary(LatentSummary(6, 4))


def test_hooks_must_be_callable() -> None:
    with pytest.raises(TypeError):
        Sparse1DProbe().fit(X, Y, iteration_hook="print")
