"""The Flower ClientApp: answer the server's two messages, `query` and `train`."""

from functools import cache
from pathlib import Path

from flwr.app import Context, Message, MetricRecord
from flwr.clientapp import ClientApp

from client.data import data_of, guard_of, task_of
from client.device import machine_of
from client.discretion import discreet
from client.secrecy import member_of
from ist_fed.engines.streams import streamed
from ist_fed.scenario import from_run_config
from ist_fed.worker import Worker

app = ClientApp(mods=[discreet, streamed])


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this client is."""
    return _worker(context).query(message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the subnet that the server sent."""
    return _worker(context).train(message)


def _worker(context: Context) -> Worker:
    config = context.run_config
    worker = _made(str(config["scenario"]), str(config["set"]), tuple(context.node_config.items()))
    if isinstance(link := context.state.get("link"), MetricRecord):  # a resident client measures it
        worker.link = float(str(link["bytes_per_second"]))
    return worker


@cache
def _made(scenario: str, overrides: str, node_config: tuple[tuple[str, object], ...]) -> Worker:
    """Kept while the process lives, so that data are read once."""
    described = from_run_config({"scenario": scenario, "set": overrides}, Path(__file__).parent.parent)
    node = dict(node_config)
    task = task_of(described, node)
    machine = machine_of(node, described.device, described.precision)
    number = int(str(node["partition-id"]))
    data, member, guard = data_of(task, node), member_of(node), guard_of(described, node, number)
    return Worker(task, data, client=number, member=member, guard=guard, **vars(machine))
