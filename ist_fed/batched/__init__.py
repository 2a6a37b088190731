"""Many clients trained as one computation."""

from ist_fed.batched.choose import Choice, Job, Way
from ist_fed.batched.pool import Pool
from ist_fed.batched.together import NotTogether, Trained, train_together
from ist_fed.batched.ways import Ways

__all__ = ["Choice", "Job", "NotTogether", "Pool", "Trained", "Way", "Ways", "train_together"]
