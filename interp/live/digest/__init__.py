"""What a monitor remembers of a job: a few numbers and short histories, whatever the number of events.

A digest takes events (`Digest.add`) and answers with a frame: a small dictionary and one block of
float32 numbers (`Digest.frame`). The browser draws the frame, `interp.live.plots` draws the same
digest with matplotlib. No history grows: a `Series` that is full merges its neighbours two by two.
"""

from interp.live.digest.base import Digest
from interp.live.digest.capture import CaptureDigest
from interp.live.digest.fit import FitDigest
from interp.live.digest.lens import GRADES, LensDigest
from interp.live.digest.series import Series

__all__ = ["GRADES", "CaptureDigest", "Digest", "FitDigest", "LensDigest", "Series"]
