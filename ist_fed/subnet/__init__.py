"""Cut a narrow network out of a wide one, and merge narrow ones back: pure functions on `{name: tensor}`."""

from ist_fed.subnet.cut import axes_apart, extract, extract_each
from ist_fed.subnet.in_place import MergeInPlace
from ist_fed.subnet.merge import Merge

__all__ = ["Merge", "MergeInPlace", "axes_apart", "extract", "extract_each"]
