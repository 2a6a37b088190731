"""State of optimisers that travels, on every engine: law 10."""

import dataclasses

import pytest
import tiny
from test_choose import chosen
from test_together import Double, apart, by_messages, federate

from ist_fed import rules
from ist_fed.train import Training

SGD = Training(lr=0.1, batch_size=8, momentum=0.9, state="travels")
ADAM = dataclasses.replace(SGD, optimizer="adam", lr=0.01)
ADAMW = dataclasses.replace(ADAM, optimizer="adamw", weight_decay=0.1)
HALVES = rules.Disjoint(groups=2, min_units=2)


@pytest.mark.parametrize("training", [SGD, ADAM, ADAMW], ids=lambda training: training.optimizer)
@pytest.mark.parametrize("rule", [HALVES, rules.Full()], ids=["halves", "full"])
def test_engines_agree(training: Training, rule: rules.Rule) -> None:
    """Law 10: by messages and one by one to the last bit, stacked within rounding of float64."""
    task, options = Double(norm="batch"), {"training": training, "rounds": 3}
    messages = by_messages(task, rule, 5, **options)
    alone = federate(task, rule, 5, "one by one", **options)
    together = federate(task, rule, 5, "stacked", **options)
    for one, other, third in zip(messages, alone, together, strict=True):
        assert tiny.same(one.arrays, other.arrays)
        assert apart(one.arrays, third.arrays) < 1e-10
        assert one.bytes_down == other.bytes_down == third.bytes_down
        assert one.bytes_up == other.bytes_up == third.bytes_up


@pytest.mark.parametrize("broken", [{1}, {0, 3}])
def test_a_broken_client_among_others_spoils_no_momentum(broken: set[int]) -> None:
    task = Double(norm="layer", poisoned=sorted(broken))
    alone = federate(task, HALVES, 5, "one by one", training=ADAM, rounds=3)
    together = federate(task, HALVES, 5, "stacked", training=ADAM, rounds=3)
    assert [len(report.refused) for report in together] == [len(broken)] * 3
    assert max(apart(one.arrays, other.arrays) for one, other in zip(alone, together, strict=True)) < 1e-10


def test_nothing_is_factored_that_has_a_momentum_from_before() -> None:
    assert chosen(512, steps=4).way == "factored"
    assert chosen(512, steps=4, training=SGD).way == "one by one"
    assert chosen(50, steps=4, training=SGD, only="factored").way == "stacked"
    assert chosen(512, steps=4, training=dataclasses.replace(SGD, momentum=0.0)).way == "factored"
