"""A one-dimensional logistic probe for every (latent, class) pair of a sparse code."""

from interp.probe.estimator import Sparse1DProbe
from interp.probe.sizes import auto_sizes, measure_blocks, measure_row_batches
from interp.probe.summary import LatentSummary

__all__ = ["LatentSummary", "Sparse1DProbe", "auto_sizes", "measure_blocks", "measure_row_batches"]
