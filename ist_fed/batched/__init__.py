"""Many clients trained as one computation."""

from ist_fed.batched.choose import Choice, Job, Way, choose
from ist_fed.batched.pool import Pool
from ist_fed.batched.together import NotTogether, Trained, train_together
from ist_fed.batched.trial import differs

__all__ = ["Choice", "Job", "NotTogether", "Pool", "Trained", "Way", "choose", "differs", "train_together"]
