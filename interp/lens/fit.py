r"""Many L2 logistic regressions at once, in sample space.

For problem k with rows z_i (standardised, divided by √d), labels y_i ∈ {0, 1} and row weights s_i ≥ 0, the
lens minimises

    L(w, b) = Σ_i s_i [ softplus(f_i) − y_i f_i ] + λ/2 ‖w‖²,      f_i = w·z_i + b,

with a free intercept. A lens has far fewer samples than the model has dimensions (n ≪ d), and at the
minimum w = Zᵀα with α_i = s_i (y_i − σ(f_i)) / λ, so everything happens in the Gram matrix G = Z Zᵀ: each
Newton (IRLS) step solves, with W = diag(s p (1 − p)) and the working response W z = W f + s (y − p),

    (λ I + W^½ G W^½) u = W^½ z − b W^½ 1,      α = W^½ u,      1ᵀα = 0                            (1)

(Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, algorithm 3.1, with λ for the kernel's
scale and the intercept eliminated). The matrix has no eigenvalue below λ and needs no inverse of G or W, so a
row of weight 0 is simply absent: problems of different sizes are padded and solved as one batch. For d < n
the same step is taken in the d coordinates of w.

λ is in units of G, whose diagonal is about 1 at every width: λ = 1/(C d) for scikit-learn's C on standardised
inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from interp.threads import shared

__all__ = ["LAMBDAS", "choose_lambda", "fit_mlp", "solve", "standardise", "statistics"]

#: The λ path, from strong to weak; each fit starts from the one before.
LAMBDAS = (3.0, 0.3, 0.03, 0.003, 0.0003)

_MAX_ITER = 50
#: float32 is kept where the Newton systems' condition stays below this; measured in tests/test_lens_fit.py.
_MAX_CONDITION = 1e6
#: Values of one feature block that are worked on at a time: it stays in the cache.
_BLOCK = 800_000


def statistics(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and scale of training rows for `standardise`.

    Parameters
    ----------
    rows : tensor, shape [n, d]

    Returns
    -------
    mean, scale : tensors, shape [d], float32
        The scale of a dimension is its standard deviation, at least 0.001 of the median one, so that a
        dimension that hardly moves is not blown up; 1 for one that does not move at all (its weight is then
        exactly 0).
    """
    wide = rows.double()
    mean = wide.mean(dim=0)
    scale = (wide - mean).square().mean(dim=0).sqrt()
    moving = scale > 1e-6 * scale.max().clamp_min(1e-30)
    if moving.any():
        scale = scale.clamp_min(1e-3 * float(scale[moving].median()))
    return mean.float(), torch.where(moving, scale, torch.ones_like(scale)).float()


def standardise(rows: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """(rows − mean) / (scale √d) in float32, of the shape of `rows`, so that a typical row has norm 1."""
    return (rows.float() - mean).div_(scale * rows.shape[-1] ** 0.5)


def solve(
    z: torch.Tensor | None,
    y: torch.Tensor,
    s: torch.Tensor,
    lam: torch.Tensor | float,
    *,
    gram: torch.Tensor | None = None,
    tol: float = 1e-6,
    start: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve a batch of problems.

    Parameters
    ----------
    z : tensor, shape [n_problems, n, d], or None
        Rows. None if `gram` is given and only α is wanted.
    y, s : tensors, shape [n_problems, n]
        Labels 0/1 and weights ≥ 0. Rows of weight 0 are padding.
    lam : float or tensor, shape [n_problems]
    gram : tensor, shape [n_problems, n, n], optional
        Z Zᵀ, if it is at hand.
    tol : float
        Stop when what is left to move is estimated below this for every logit f, relative to 1 + |f|: after a
        whole Newton step df, which converges quadratically, df²/2, after a shortened one |df|.
    start : (α or w, b), optional
        A solution of the same kind to start from.

    Returns
    -------
    coef : tensor of the dtype of the input
        Shape [n_problems, d] in the primal case (d < n), else [n_problems, n]: α, with w = Zᵀα. `weights`
        gives w in either case.
    b : tensor of the same dtype, shape [n_problems]

    Notes
    -----
    Computed in the dtype of the input; float32 problems whose Newton systems are worse conditioned than
    1e6 are solved in float64 and rounded. Every accepted step lowers L (step halving).
    """
    primal = z is not None and gram is None and z.shape[2] < z.shape[1]
    if primal:
        assert z is not None
        features = z
        size = z.square().sum(dim=2)
    else:
        if gram is None:
            assert z is not None
            gram = z @ z.transpose(1, 2)
        features = gram
        size = gram.diagonal(dim1=1, dim2=2)
    lam = torch.as_tensor(lam, dtype=features.dtype, device=features.device).expand(len(features)).clone()
    block = max(1, _BLOCK // max(features[0].numel(), 1)) if len(features) else 1
    if len(features) > block and features.device.type == "cpu":
        parts = []
        for i in range(0, len(features), block):
            cut = slice(i, i + block)
            begin = None if start is None else (start[0][cut], start[1][cut])
            kind = (features[cut], None) if primal else (None, features[cut])
            parts.append(solve(kind[0], y[cut], s[cut], lam[cut], gram=kind[1], tol=tol, start=begin))
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])
    if features.dtype == torch.float32:
        # The largest eigenvalue of W^½ G W^½ is at most its trace, Σ s G_ii / 4.
        hard = (s * size).sum(dim=1) / 4 > _MAX_CONDITION * lam
        if bool(hard.any()):
            out_c, out_b = _newton(features, y, s, lam, primal, tol, start, skip=hard)
            which = hard.nonzero(as_tuple=True)[0]
            wide = (features[which].double(), y[which].double(), s[which].double(), lam[which].double())
            begin = None if start is None else (start[0][which].double(), start[1][which].double())
            c, b = _newton(*wide, primal, tol, begin)
            out_c[which], out_b[which] = c.float(), b.float()
            return out_c, out_b
    return _newton(features, y, s, lam, primal, tol, start)


def weights(coef: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """w, shape [n_problems, d], of what `solve` returned for rows `z`."""
    if coef.shape[1] == z.shape[2] and z.shape[2] < z.shape[1]:
        return coef
    return (coef[:, None, :] @ z)[:, 0]


def _newton(
    features: torch.Tensor,
    y: torch.Tensor,
    s: torch.Tensor,
    lam: torch.Tensor,
    primal: bool,
    tol: float,
    start: tuple[torch.Tensor, torch.Tensor] | None,
    skip: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n_problems, _n, width = features.shape
    if start is None:
        coef = features.new_zeros(n_problems, width)
        total = s.sum(dim=1).clamp_min(1e-30)
        rate = ((s * y).sum(dim=1) / total).clamp(1e-4, 1 - 1e-4)
        b = torch.log(rate / (1 - rate))
    else:
        coef, b = start[0].clone(), start[1].clone()
    todo = torch.arange(n_problems, device=features.device)
    if skip is not None:
        todo = todo[~skip]
    # Converged problems leave the batch; `part` holds the rest.
    part = [features, y, s, lam] if skip is None else [t[todo] for t in (features, y, s, lam)]
    done = torch.zeros(len(todo), dtype=torch.bool, device=features.device)
    for _ in range(_MAX_ITER):
        if not len(todo):
            break
        feats, y_a, s_a, lam_a = part
        c0, b0 = coef[todo], b[todo]
        linear = _times(feats, c0, primal)
        f0 = linear + b0[:, None]
        step = _primal_step if primal else _dual_step
        dc, db = step(feats, y_a, s_a, lam_a, c0, b0, f0)
        d_linear = _times(feats, dc, primal)
        df = d_linear + db[:, None]
        # ‖w‖² along the step: quadratic in t, so its three coefficients serve every trial.
        left = (c0, dc) if primal else (linear, d_linear)
        q0 = (c0 * left[0]).sum(1)
        q1 = (dc * left[0]).sum(1)
        q2 = (dc * left[1]).sum(1)
        loss0 = _loss(f0, y_a, s_a)
        # Converged problems stay where they are: none depends on how long the others take.
        t = (~done).to(b0)
        for _ in range(12):
            change = _loss(f0 + t[:, None] * df, y_a, s_a) - loss0 + lam_a * (t * q1 + 0.5 * t * t * q2)
            # Rounding of the loss must not be taken for a rise.
            slack = 8 * torch.finfo(f0.dtype).eps * (loss0 + 0.5 * lam_a * q0 + 1)
            worse = ~(change <= slack)
            if not bool(worse.any()):
                break
            t = torch.where(worse, t * 0.5, t)
        coef[todo] = c0 + t[:, None] * dc
        b[todo] = b0 + t * db
        moved = torch.where(s_a > 0, (t[:, None] * df).abs(), torch.zeros_like(df))
        to_move = torch.where((t == 1)[:, None], moved.square() / 2, moved) / (1 + f0.abs())
        live = to_move.amax(dim=1) > tol
        if not bool(live.any()):
            break
        # Copying the rest costs about a step, so wait until it saves one.
        if int(live.sum()) <= 0.5 * len(todo):
            todo = todo[live]
            part = [p[live] for p in part]
            live = live[live]
        done = ~live
    return coef, b


def _times(features: torch.Tensor, coef: torch.Tensor, primal: bool) -> torch.Tensor:
    """Features times coef of each problem; from the left, as a Gram matrix allows, it takes half the time."""
    return (features @ coef[:, :, None])[:, :, 0] if primal else (coef[:, None] @ features)[:, 0]


def _loss(f: torch.Tensor, y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    return (s * (torch.nn.functional.softplus(f) - y * f)).sum(dim=1)


def _dual_step(
    gram: torch.Tensor,
    y: torch.Tensor,
    s: torch.Tensor,
    lam: torch.Tensor,
    alpha: torch.Tensor,
    b: torch.Tensor,
    f: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The step of equation (1)."""
    p = torch.sigmoid(f)
    w = s * (p * (1 - p)).clamp_min(torch.finfo(f.dtype).tiny ** 0.5)
    root = w.sqrt()
    system = (root[:, :, None] * gram).mul_(root[:, None, :])
    system.diagonal(dim1=1, dim2=2).add_(lam[:, None])
    factor = torch.linalg.cholesky_ex(system)[0]
    target = torch.where(s > 0, (w * f + s * (y - p)) / root.clamp_min(1e-30), torch.zeros_like(f))
    u = _substitute(factor, torch.stack([target, root], dim=2))
    b_new = (root * u[:, :, 0]).sum(1) / (root * u[:, :, 1]).sum(1).clamp_min(1e-30)
    alpha_new = root * (u[:, :, 0] - b_new[:, None] * u[:, :, 1])
    return alpha_new - alpha, b_new - b


def _substitute(factor: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Solve with a lower Cholesky factor (a third faster than `torch.cholesky_solve` for two right sides)."""
    half = torch.linalg.solve_triangular(factor, right, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def _primal_step(
    z: torch.Tensor,
    y: torch.Tensor,
    s: torch.Tensor,
    lam: torch.Tensor,
    w: torch.Tensor,
    b: torch.Tensor,
    f: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Newton in (w, b): H = [Zᵀ W Z + λ I, Zᵀ W 1; 1ᵀ W Z, 1ᵀ W 1], the intercept by its Schur complement."""
    p = torch.sigmoid(f)
    curve = s * (p * (1 - p)).clamp_min(torch.finfo(f.dtype).tiny ** 0.5)
    residual = s * (y - p)
    hessian = z.transpose(1, 2) @ (curve[:, :, None] * z)
    hessian.diagonal(dim1=1, dim2=2).add_(lam[:, None])
    factor = torch.linalg.cholesky_ex(hessian)[0]
    grad_w = (residual[:, None, :] @ z)[:, 0] - lam[:, None] * w
    cross = (curve[:, None, :] @ z)[:, 0]
    u = _substitute(factor, torch.stack([grad_w, cross], dim=2))
    schur = curve.sum(1) - (cross * u[:, :, 1]).sum(1)
    db = (residual.sum(1) - (cross * u[:, :, 0]).sum(1)) / schur.clamp_min(1e-30)
    return u[:, :, 0] - db[:, None] * u[:, :, 1], db


def choose_lambda(
    gram: torch.Tensor,
    y: torch.Tensor,
    s: torch.Tensor,
    training: torch.Tensor,
    held: torch.Tensor,
    lambdas: Sequence[float] = LAMBDAS,
    *,
    threads: int = 1,
) -> torch.Tensor:
    """λ per problem by cross-validation: the smallest mean loss on the rows held out.

    Parameters
    ----------
    gram : tensor, shape [n_problems, n, n]
    y, s : tensors, shape [n_problems, n]
    training, held : bool tensors, shape [n_problems, n_folds, n]
        Rows that fold f fits on, and those it is judged on. Neither need cover all rows.
    lambdas : sequence of float
        Tried from the largest down, each from the solution before; a tie goes to the largest.
    threads : int
        To share the folds among (`interp.threads.shared`); the answer does not depend on it.

    Returns
    -------
    tensor of the dtype of `gram`, shape [n_problems]
    """
    n_problems, n_folds = training.shape[:2]
    training = (training & (s > 0)[:, None, :]).flatten(0, 1)
    weight = (held * s[:, None, :]).flatten(0, 1)
    sizes = training.sum(dim=1).clamp_min(1)
    losses = gram.new_zeros(n_problems * n_folds, len(lambdas))
    todo = torch.argsort(sizes, descending=True, stable=True)
    blocks: list[tuple[int, torch.Tensor]] = []
    while len(todo):
        # Folds of about one size are padded little, and the whole path of a block stays in the cache.
        size = int(sizes[todo[0]])
        block = todo[: max(1, _BLOCK // size**2)]
        block = block[sizes[block] > 0.8 * size - 2]
        todo = todo[len(block) :]
        blocks.append((size, block))
    work = ((gram, y, s, training[b], weight[b], b // n_folds, size, lambdas) for size, b in blocks)
    for (_, block), found in zip(blocks, shared(_path, work, threads), strict=True):
        losses[block] = found
    # The first of the smallest: a tie goes to the largest λ.
    best = losses.reshape(n_problems, n_folds, len(lambdas)).sum(dim=1).argmin(dim=1)
    return gram.new_tensor(sorted(lambdas, reverse=True))[best]


def _path(
    gram: torch.Tensor,
    y: torch.Tensor,
    s: torch.Tensor,
    training: torch.Tensor,
    weight: torch.Tensor,
    owner: torch.Tensor,
    size: int,
    lambdas: Sequence[float],
) -> torch.Tensor:
    """Losses of some folds along the path, ``[n_folds, n_lambdas]``, from the largest λ down.

    Parameters
    ----------
    gram, y, s, lambdas
        As in `choose_lambda`.
    training, weight : tensors, shape [n_folds, n]
        Rows to fit on, and weights of the rows to judge by.
    owner : int64 tensor, shape [n_folds]
        The problem of each.
    size : int
        Most rows that a fold fits on.
    """
    n = training.shape[1]
    if 100 < size <= 128 or size % 128 == 0:
        # MKL factors 129 rows in half the time of 127 and a third of 128; 257 likewise.
        size = min(max(size + 1, 129), n)
    order, present = _front(training, size)
    held, judged = _front(weight > 0, max(int((weight > 0).sum(dim=1).max()), 1))
    # Two gathers: first the rows, then the columns.
    rows = gram.flatten(0, 1)[owner[:, None] * n + order]
    sub = torch.gather(rows, 2, order[:, None, :].expand(-1, size, -1))
    cross = torch.gather(rows, 2, held[:, None, :].expand(-1, size, -1))
    y_t, y_h = (torch.gather(y[owner], 1, at) for at in (order, held))
    s_t = torch.where(present, torch.gather(s[owner], 1, order), sub.new_zeros(()))
    s_h = torch.where(judged, torch.gather(weight, 1, held), sub.new_zeros(()))
    losses = []
    before: tuple[torch.Tensor, torch.Tensor] | None = None
    state: tuple[torch.Tensor, torch.Tensor] | None = None
    for lam in sorted(lambdas, reverse=True):
        start = state
        if state is not None and before is not None:
            # Logits grow about linearly with log λ: the next solution lies near the line of the last two.
            start = (2 * state[0] - before[0], 2 * state[1] - before[1])
        before, state = state, solve(None, y_t, s_t, lam, gram=sub, tol=1e-3, start=start)
        f = (state[0][:, None, :] @ cross)[:, 0] + state[1][:, None]
        losses.append((s_h * (torch.nn.functional.softplus(f) - y_h * f)).sum(dim=1))
    return torch.stack(losses, dim=1)


def _front(mask: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns of the true entries of each row, in order, then others up to `size`; which of them are true."""
    order = torch.argsort(mask.int(), dim=1, descending=True, stable=True)[:, :size]
    return order, torch.gather(mask, 1, order)


def fit_mlp(
    z: torch.Tensor,
    y: torch.Tensor,
    s: torch.Tensor,
    seeds: Sequence[int],
    *,
    hidden: int = 32,
    epochs: int = 100,
    learning_rate: float = 3e-3,
    decay: float = 1e-2,
) -> dict[str, torch.Tensor]:
    """One hidden layer per problem, f = v·relu(U z + a) + b, all problems as one batch (AdamW, full batch).

    Parameters
    ----------
    z : tensor, shape [n_problems, n, d]
        Rows as `standardise` gives them.
    y, s : tensors, shape [n_problems, n]
    seeds : sequence of int
        One per problem: its first weights do not depend on the problems beside it.
    hidden, epochs : int
    learning_rate, decay : float
        As usual.

    Returns
    -------
    dict
        ``up`` (n_problems, d, hidden), ``shift`` (n_problems, hidden), ``down`` (n_problems, hidden),
        ``bias`` (n_problems,).
    """
    n_problems, _, d = z.shape
    z = z * d**0.5  # unit variance per dimension, as a network wants it
    up, down = [], []
    for seed in seeds:
        g = torch.Generator().manual_seed(seed)
        up.append(torch.randn(d, hidden, generator=g) * (2 / d) ** 0.5)
        down.append(torch.randn(hidden, generator=g) * hidden**-0.5)
    params = {
        "up": torch.stack(up).to(z),
        "shift": z.new_zeros(n_problems, hidden),
        "down": torch.stack(down).to(z),
        "bias": z.new_zeros(n_problems),
    }
    for p in params.values():
        p.requires_grad_(True)
    optimiser = torch.optim.AdamW(params.values(), lr=learning_rate, weight_decay=decay)
    weight = s / s.sum(dim=1, keepdim=True).clamp_min(1e-30)
    for _ in range(epochs):
        hidden_rows = torch.relu(torch.baddbmm(params["shift"][:, None, :], z, params["up"]))
        f = (hidden_rows @ params["down"][:, :, None])[:, :, 0] + params["bias"][:, None]
        # A sum over problems: each problem's gradient, and Adam's step, is its own.
        loss = (weight * (torch.nn.functional.softplus(f) - y * f)).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    fitted = {name: p.detach() for name, p in params.items()}
    fitted["up"] = fitted["up"] * d**0.5  # so that it applies to standardised rows as they are
    return fitted
