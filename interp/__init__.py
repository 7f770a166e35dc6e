"""interp: capture activations, probe sparse codes, train concept lenses, and watch them run.

>>> import interp
>>> interp.__version__
'0.1.0'
"""

from __future__ import annotations

from interp import events, run

__version__ = "0.1.0"

__all__ = ["__version__", "events", "run"]
