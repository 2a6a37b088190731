"""What `bench_net.py` and `ddp.py` train: the MLP 64-2048-2048-10 on digits."""

from typing import Any

SIZES = {"hidden1": 2048, "hidden2": 2048}
OPTIONS: dict[str, Any] = {}
TARGET = 0.97


def state_bytes(hidden1: int, hidden2: int) -> int:
    """The closed formula: bytes of the state of an MLP 64-hidden1-hidden2-10 with BatchNorm.

    Weights, the head's biases, and of every hidden unit scale, shift, mean and variance, in float32; for each of the
    two BatchNorms a counter of eight bytes.
    """
    weights = 64 * hidden1 + hidden1 * hidden2 + 10 * hidden2 + 10
    return 4 * (weights + 4 * (hidden1 + hidden2)) + 2 * 8
