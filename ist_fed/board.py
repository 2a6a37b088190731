"""Metrics for TensorBoard, where it is installed."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def open_board(folder: Path, done: int) -> Callable[[dict[str, Any]], None]:
    """A function that writes a round's line as TensorBoard events; it does nothing if TensorBoard is not installed.

    Args:
        folder: for the event files.
        done: rounds already written; events of later rounds, from before an interruption, are hidden.
    """
    if find_spec("tensorboard") is None:
        return lambda line: None
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder, purge_step=done + 1 if done else None)

    def write(line: dict[str, Any]) -> None:
        scalars = {"train/loss": line["train_loss"], "train/lr": line["lr"], "network/coverage": line["coverage"]}
        if "loss" in line:
            scalars |= {"test/loss": line["loss"], f"test/{line['metric']}": line[line["metric"]]}
        scalars |= {f"bytes/{way}": line[f"bytes_{way}"] for way in ("down", "up")}
        scalars |= {f"seconds/{phase}": seconds for phase, seconds in line["seconds"].items()}
        for name, value in scalars.items():
            writer.add_scalar(name, value, line["round"])
        writer.flush()

    return write
