"""The section that leads on from a run: commands, the whole scenario, and the words of the page."""

import os
import shlex
from pathlib import Path

from ist_fed.report.facts import Facts
from ist_fed.report.page import Html, fold, tag


def again(facts: Facts) -> list[Html]:
    """The commands that lead on from here, the scenario, and the words."""
    folder = shlex.quote(_shown(facts.run.folder))
    commands = [] if facts.done else [f"ist-fed simulate --resume {folder}   # go on with this run"]
    commands += [
        f"ist-fed simulate {folder}/scenario.toml --run runs/again   # the same once more",
        f"ist-fed compare {folder}/scenario.toml OTHER.toml   # this scenario beside another",
        f"ist-fed report {folder}   # this page",
    ]
    return [
        tag("h2", "Do it again"),
        tag("pre", tag("code", "\n".join(commands))),
        fold("The scenario, every default filled in", tag("pre", tag("code", facts.scenario.to_toml()))),
        fold(
            "Words",
            tag("dl", *(tag(name, text) for entry in _WORDS for name, text in zip(("dt", "dd"), entry, strict=True))),
        ),
    ]


def _shown(folder: Path) -> str:
    """The folder as seen from here, if it lies here; a page that is passed on need not tell where its author lives."""
    path = os.path.relpath(folder)
    return folder.name if path.startswith("..") else path


_WORDS = (
    ("unit", "One hidden neuron, channel, attention head, or residual block."),
    ("axis", "The units of one hidden layer."),
    ("subnet", "The narrow network that some units of every axis make, with the weights between them."),
    ("client", "A device with data of its own. It holds one subnet at a time, never sends its data, and trains."),
    ("round", "The server deals the units out, sends the subnets, waits for them to come back, and merges them."),
    ("cohort", "The clients that hold the same subnet in one round; their results are averaged."),
    ("coverage", "The share of the network that some client has trained at least once."),
    ("FedAvg", "Federated averaging: every client trains the whole network, and the server averages."),
)
