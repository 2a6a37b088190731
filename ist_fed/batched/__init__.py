"""Many clients trained as one computation."""

from ist_fed.batched.choose import Choice, Job, Way
from ist_fed.batched.pool import Pool
from ist_fed.batched.together import NotTogether, Trained, train_together
from ist_fed.batched.ways import Ways
from ist_fed.batched.workspace import Workspace

__all__ = ["Choice", "Job", "NotTogether", "Pool", "Trained", "Way", "Ways", "Workspace", "train_together"]
