"""A one-dimensional logistic probe for every (latent, class) pair of a sparse code."""

from interp.probe.fit import Sparse1DProbe
from interp.probe.summary import LatentSummary

__all__ = ["LatentSummary", "Sparse1DProbe"]
