"""Hand-written loops for this one network, as fast as we can write them: the limit for whatever is general.

    python -m sim.loops '{"loop": "factored", "rule": "ist", "clients": 100}'

They know that there are three linear layers, plain SGD and equal weights; they check nothing and report nothing, and
plans and orders of examples are drawn before the clock starts. Gradients are written by hand, into memory that is
there already, and updates are part of the matrix products.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sim import plans
from sim.workload import BATCH, LR, OUTPUTS, STEPS, data, difference, order, peak_mb, report, start, timed

Layers = list[Tensor]
"""Weight and bias of each of three layers."""

AT_ONCE = {"stacked": {"fedavg": 5, "ist": 50}, "factored": {"fedavg": 50, "ist": 50}}
"""Clients in a chunk; on a processor more of them leave the cache."""


class Buffers:
    """Memory that is asked for once, by name and shape."""

    def __init__(self, like: Tensor) -> None:
        self._like, self._kept = like, dict[tuple[Any, ...], Tensor]()
        self.done = set[str]()

    def __call__(self, name: str, *shape: int) -> Tensor:
        key = (name, shape)
        if key not in self._kept:
            self._kept[key] = self._like.new_empty(shape)
        return self._kept[key]


def no_gradient_where_off(grads: Tensor, outputs: Tensor, out: Tensor) -> Tensor:
    """The backward pass of ReLU."""
    return torch.ops.aten.threshold_backward.grad_input(grads, outputs, 0, grad_input=out)


def head(logits: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy, in the memory of the logits."""
    if len(rows := logits.view(-1, OUTPUTS)) == BATCH:
        torch.softmax(logits, -1, out=logits)
    else:  # of many rows of ten numbers it takes ten times as long as of ten columns
        columns = rows.T.contiguous()
        rows.copy_(torch.softmax(columns, 0, out=columns).T)
    return logits.sub_(targets).mul_(1 / BATCH)


# --- One client after another -----------------------------------------------------------------------------------------


def sequential(net: Layers, x: Tensor, targets: Tensor, cohort: plans.Cohort, buffers: Buffers) -> Layers:
    """The sum of the clients' weights."""
    own = [buffers(f"own{at}", *part.shape) for at, part in enumerate(net)]
    sums = [torch.zeros_like(part) for part in net]
    for client, taken in zip(cohort.clients.tolist(), cohort.orders, strict=True):
        torch._foreach_copy_(own, net)
        for index in taken.split(BATCH):
            one_step(own, x[client], targets[client], index, buffers)
        torch._foreach_add_(sums, own)
    return sums


def one_step(own: Layers, x: Tensor, targets: Tensor, index: Tensor, buffers: Buffers) -> None:
    w1, b1, w2, b2, w3, b3 = own
    inputs = torch.index_select(x, 0, index, out=buffers("x", BATCH, x.shape[1]))
    h1 = torch.addmm(b1, inputs, w1.T, out=buffers("h1", BATCH, len(w1))).relu_()
    h2 = torch.addmm(b2, h1, w2.T, out=buffers("h2", BATCH, len(w2))).relu_()
    logits = torch.addmm(b3, h2, w3.T, out=buffers("logits", BATCH, OUTPUTS))
    d3 = head(logits, torch.index_select(targets, 0, index, out=buffers("t", BATCH, OUTPUTS)))
    d2 = torch.mm(d3, w3, out=buffers("d2", BATCH, len(w2)))
    no_gradient_where_off(d2, h2, d2)
    d1 = torch.mm(d2, w2, out=buffers("d1", BATCH, len(w1)))
    no_gradient_where_off(d1, h1, d1)
    for weight, bias, grads, seen in ((w1, b1, d1, inputs), (w2, b2, d2, h1), (w3, b3, d3, h2)):
        weight.addmm_(grads.T, seen, alpha=-LR)
        bias.sub_(grads.sum(0), alpha=LR)


# --- All clients, stacked ---------------------------------------------------------------------------------------------


def stacked(net: Layers, x: Tensor, targets: Tensor, cohort: plans.Cohort, buffers: Buffers) -> Layers:
    """The sum of the clients' weights."""
    n, size = len(cohort.clients), x.shape[-1]
    own = [buffers(f"own{at}", n, *part.shape) for at, part in enumerate(net)]
    torch._foreach_copy_(own, [part.expand(n, *part.shape) for part in net])
    w1, b1, w2, b2, w3, b3 = own
    for step in range(STEPS):
        rows = rows_of(cohort, step, x.shape[1])
        inputs = torch.index_select(x.view(-1, size), 0, rows, out=buffers("x", n * BATCH, size)).view(n, BATCH, size)
        h1 = torch.baddbmm(b1[:, None], inputs, w1.mT, out=buffers("h1", n, BATCH, w1.shape[1])).relu_()
        h2 = torch.baddbmm(b2[:, None], h1, w2.mT, out=buffers("h2", n, BATCH, w2.shape[1])).relu_()
        logits = torch.baddbmm(b3[:, None], h2, w3.mT, out=buffers("logits", n, BATCH, OUTPUTS))
        d3 = head(logits, targets.view(-1, OUTPUTS)[rows].view(n, BATCH, OUTPUTS))
        d2 = torch.bmm(d3, w3, out=buffers("d2", n, BATCH, w2.shape[1]))
        no_gradient_where_off(d2, h2, d2)
        d1 = torch.bmm(d2, w2, out=buffers("d1", n, BATCH, w1.shape[1]))
        no_gradient_where_off(d1, h1, d1)
        for weight, bias, grads, seen in ((w1, b1, d1, inputs), (w2, b2, d2, h1), (w3, b3, d3, h2)):
            weight.baddbmm_(grads.mT, seen, alpha=-LR)
            bias.sub_(grads.sum(1), alpha=LR)
    return [part.sum(0) for part in own]


def rows_of(cohort: plans.Cohort, step: int, samples: int) -> Tensor:
    """Where a step's examples lie among those of all clients."""
    index = cohort.orders[:, step * BATCH : (step + 1) * BATCH]
    return (cohort.clients[:, None] * samples + index).flatten()


# --- All clients, the two wide layers as factors ----------------------------------------------------------------------


def factored(net: Layers, x: Tensor, targets: Tensor, cohort: plans.Cohort, buffers: Buffers) -> Layers:
    """The sum of the clients' weights.

    A client's weights are never written out: W₀ − lr Σ Dᵀ X, with inputs X and gradients of outputs D, is multiplied
    with as a product with W₀ for all clients, and thin ones with its own X and D. What the first layer's inputs make
    with one another never changes, and is computed once. The narrow last layer is stacked.
    """
    w1, b1, w2, b2, w3, b3 = net
    grams = products(x, buffers)
    n, seen = len(cohort.clients), STEPS * BATCH
    wide1, wide2 = len(w1), len(w2)
    at = (torch.arange(n, device=x.device)[:, None] * seen + cohort.orders).view(-1)
    everywhere = cohort.clients[:, None] * seen + cohort.orders
    first = of_own_examples(w1, b1, x, cohort, buffers).flatten(0, 1).index_select(0, at).view(n, seen, -1)[..., :wide1]
    wanted = targets.view(-1, OUTPUTS).index_select(0, everywhere.view(-1)).view(n, seen, OUTPUTS)
    pairs = everywhere[:, :, None] * seen + cohort.orders[:, None]
    gram = grams.view(-1).index_select(0, pairs.view(-1)).view(n, seen, seen)
    all_h1, all_d1 = buffers("all_h1", n, seen, wide1), buffers("all_d1", n, seen, wide1)
    all_d2 = buffers("all_d2", n, seen, wide2)
    h1, d1 = buffers("h1", n * BATCH, wide1), buffers("d1", n * BATCH, wide1)
    h2, d2 = buffers("h2", n * BATCH, wide2), buffers("d2", n * BATCH, wide2)
    h1s, d1s, h2s, d2s = (part.view(n, BATCH, -1) for part in (h1, d1, h2, d2))
    last, last_bias = buffers("last", n, *w3.shape), buffers("last_bias", n, len(b3))
    last.copy_(w3.expand_as(last))
    last_bias.copy_(b3.expand_as(last_bias))
    for step in range(STEPS):
        now, past = slice(step * BATCH, (step + 1) * BATCH), slice(0, step * BATCH)
        h1s.copy_(first[:, now])
        if step:
            h1s.baddbmm_(gram[:, now, past], all_d1[:, past], alpha=-LR)
        all_h1[:, now] = h1s.relu_()
        torch.addmm(b2, h1, w2.T, out=h2)
        if step:
            h2s.baddbmm_(torch.bmm(h1s, all_h1[:, past].mT).add_(1), all_d2[:, past], alpha=-LR)
        h2s.relu_()
        logits = torch.baddbmm(last_bias[:, None], h2s, last.mT, out=buffers("logits", n, BATCH, OUTPUTS))
        d3 = head(logits, wanted[:, now])
        torch.bmm(d3, last, out=d2s)
        no_gradient_where_off(d2s, h2s, d2s)
        torch.mm(d2, w2, out=d1)
        if step:
            d1s.baddbmm_(torch.bmm(d2s, all_d2[:, past].mT), all_h1[:, past], alpha=-LR)
        all_d1[:, now] = no_gradient_where_off(d1s, h1s, d1s)
        all_d2[:, now] = d2s
        last.baddbmm_(d3.mT, h2s, alpha=-LR)
        last_bias.sub_(d3.sum(1), alpha=LR)
    by_example = buffers("by_example", n * seen, wide1)
    by_example.index_copy_(0, at, all_d1.view(-1, wide1))
    d2, h1 = all_d2.view(-1, wide2), all_h1.view(-1, wide1)
    return [
        add_own_examples(n * w1, by_example.view(n, seen, wide1), x, cohort),
        n * b1 - LR * by_example.sum(0),
        torch.addmm(w2, d2.T, h1, beta=n, alpha=-LR),
        n * b2 - LR * d2.sum(0),
        last.sum(0),
        last_bias.sum(0),
    ]


def products(x: Tensor, buffers: Buffers) -> Tensor:
    """Of each client's examples with one another, and one for the bias, which is one more input."""
    out = buffers("grams", len(x), x.shape[1], x.shape[1])
    if "grams" not in buffers.done:
        torch.bmm(x, x.mT, out=out).add_(1)
        buffers.done.add("grams")
    return out


def of_own_examples(weight: Tensor, bias: Tensor, x: Tensor, cohort: plans.Cohort, buffers: Buffers) -> Tensor:
    """The first layer's outputs by the shared weights: clients × samples × units or more, examples as they lie."""
    n, samples, size = len(cohort.clients), *x.shape[1:]
    if (rows := neighbours(x, cohort)) is not None:
        out = buffers("first", n * samples, len(weight))
        return torch.addmm(bias, rows.view(-1, size), weight.T, out=out).view(n, samples, -1)
    even = -len(weight) % 64  # units that are not there: products of such a width are twice as fast
    wide = torch.nn.functional.pad(weight.T, (0, even))
    out = buffers("first", n, samples, len(weight) + even)
    for client, of_one in zip(cohort.clients.tolist(), out, strict=True):  # quicker than to bring them together
        torch.mm(x[client], wide, out=of_one)
    return out.add_(torch.nn.functional.pad(bias, (0, even)))


def add_own_examples(total: Tensor, grads: Tensor, x: Tensor, cohort: plans.Cohort) -> Tensor:
    """Take the gradient of the first layer's weights away from their sum."""
    if (rows := neighbours(x, cohort)) is not None:
        return total.addmm_(grads.flatten(0, 1).T, rows.flatten(0, 1), alpha=-LR)
    for client, of_one in zip(cohort.clients.tolist(), grads, strict=True):
        total.addmm_(of_one.T, x[client], alpha=-LR)
    return total


def neighbours(x: Tensor, cohort: plans.Cohort) -> Tensor | None:
    """The clients' examples, if they lie in one piece."""
    if not cohort.in_one_piece:
        return None
    start = int(cohort.clients[0])
    return x[start : start + len(cohort.clients)]


# --- A round ----------------------------------------------------------------------------------------------------------

LOOPS: dict[str, Callable[..., Layers]] = {"sequential": sequential, "stacked": stacked, "factored": factored}


def one_round(
    train: Callable[..., Layers],
    net: Layers,
    x: Tensor,
    targets: Tensor,
    cohorts: Sequence[plans.Cohort],
    buffers: Buffers,
    at_once: int,
) -> Layers:
    """The wide network after a round: units that nobody holds keep their weights, shared ones are averaged."""
    made = [part.clone() for part in net]
    made[5].zero_()
    clients = sum(len(cohort.clients) for cohort in cohorts)
    for cohort in cohorts:
        one, two = cohort.hidden1, cohort.hidden2
        whole = len(one) == len(net[0])
        cut = net if whole else cut_out(net, one, two)
        sums = [train(cut, x, targets, part, buffers) for part in in_chunks(cohort, at_once)]
        total = sums[0]
        for more in sums[1:]:
            torch._foreach_add_(total, more)
        made[5] += total[5] / clients
        torch._foreach_div_(total, len(cohort.clients))
        if whole:
            made[:5] = total[:5]
            continue
        for at, dim, units in ((0, 0, one), (1, 0, one), (3, 0, two), (4, 1, two)):
            made[at].index_copy_(dim, units, total[at])
        made[2].view(-1).index_copy_(0, (two[:, None] * net[2].shape[1] + one).view(-1), total[2].view(-1))
    return made


def cut_out(net: Layers, one: Tensor, two: Tensor) -> Layers:
    """The subnet that units of both hidden layers make."""
    w1, b1, w2, b2, w3, b3 = net
    middle = w2.index_select(0, two).index_select(1, one)
    return [w1.index_select(0, one), b1[one], middle, b2[two], w3.index_select(1, two), b3]


def in_chunks(cohort: plans.Cohort, at_once: int) -> list[plans.Cohort]:
    parts = zip(cohort.clients.split(at_once), cohort.orders.split(at_once), strict=True)
    one, two, whole = cohort.hidden1, cohort.hidden2, cohort.in_one_piece
    return [plans.Cohort(clients, one, two, orders, whole) for clients, orders in parts]


def one_hot(y: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.one_hot(y, OUTPUTS).to(dtype)


@torch.inference_mode()
def main() -> None:
    asked = order()
    rule, clients, device = asked["rule"], asked["clients"], asked.get("device", "cpu")
    torch.set_num_threads(asked.get("threads", 1))
    x, y = data(clients, device)
    targets = one_hot(y, x.dtype)
    weights = start(clients)["weights"]
    net = [part.to(device) for part in weights.values()]
    buffers = Buffers(x)
    at_once = asked.get("at_once") or (
        clients if device != "cpu" else AT_ONCE.get(asked["loop"], {}).get(rule, clients)
    )
    drawn = [plans.cohorts(rule, clients, number, device) for number in range(1, 5)]
    off = float("nan")

    def round(number: int) -> None:
        nonlocal net, off
        cohorts = drawn[(number - 1) % len(drawn)]
        net = one_round(LOOPS[asked["loop"]], net, x, targets, cohorts, buffers, at_once)
        if number == 1:
            off = difference(dict(zip(weights, net, strict=True)), clients, rule)

    seconds = timed(round, device)
    report(seconds, peak=peak_mb(device), difference=off)


if __name__ == "__main__":
    main()
