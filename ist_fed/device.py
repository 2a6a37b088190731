"""Where to compute."""

import torch

from ist_fed.errors import TrainingError


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the first GPU if there is one.

    Args:
        name: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.

    Raises:
        TrainingError: there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise TrainingError(
            f"device '{name}' cannot be used here: {str(error).splitlines()[0]}; "
            f"say 'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'"
        ) from error
    return device
