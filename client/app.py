"""The Flower ClientApp: answer the server's two messages, `query` and `train`."""

from functools import cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ist_fed.device import pick_device
from ist_fed.scenario import from_run_config
from ist_fed.tasks import load_task
from ist_fed.worker import Worker

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Say who this client is."""
    return _worker(context).query(message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the subnet that the server sent."""
    return _worker(context).train(message)


def _worker(context: Context) -> Worker:
    config, node = context.run_config, context.node_config
    return _made(str(config["scenario"]), str(config["set"]), int(node["partition-id"]), int(node["num-partitions"]))


@cache
def _made(scenario: str, overrides: str, client: int, clients: int) -> Worker:
    """Kept while the process lives, so that data are read once."""
    described = from_run_config({"scenario": scenario, "set": overrides}, Path(__file__).parent.parent)
    task = load_task(described.task, described.options)
    data = task.client_data(client, clients)
    return Worker(task, data, client=client, device=pick_device(described.device))
