"""Flower's own SecAgg+ in this process: its mod on every client, its workflow on the server, and no network."""

import time
from collections.abc import Iterable

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod.secure_aggregation.secaggplus_mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.client_manager import SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey

from ist_fed.engines.inprocess import InProcessGrid


class Client:
    """Answers with its update, through Flower's mod."""

    def __init__(self, update: np.ndarray, lost: bool) -> None:
        self._update, self.lost = update, lost
        self._context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
        self.seconds, self.bytes_up = 0.0, 0

    def query(self, message: Message) -> Message:
        raise NotImplementedError

    def train(self, message: Message) -> Message:
        configs = ConfigRecord(dict(message.content.config_records[RECORD_KEY_CONFIGS]))  # the mod takes parts out
        if self.lost and configs[Key.STAGE] == Stage.COLLECT_MASKED_VECTORS:
            raise ConnectionError("lost")
        message.content = RecordDict({**message.content, RECORD_KEY_CONFIGS: configs})
        began = time.process_time()
        reply = secaggplus_mod(message, self._context, self._fit)
        self.seconds += time.process_time() - began
        self.bytes_up += sum(
            len(value)
            for values in reply.content.config_records[RECORD_KEY_CONFIGS].values()
            for value in (values if isinstance(values, list) else [values])
            if isinstance(value, bytes)
        )
        return reply

    def _fit(self, message: Message, context: Context) -> Message:
        """What training would give; the time to pack it is Flower's, too."""
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self._update]), 1, {})
        return Message(compat.fitres_to_recorddict(result, keep_input=False), reply_to=message)


class Legacy(InProcessGrid):
    """As Flower's workflow wants it."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return super().send_and_receive(list(messages), timeout=timeout)


def flower_secagg(members: int, length: int, lost: int, threshold: int) -> dict[str, float]:
    """One round of SecAgg+ with everyone a neighbour of everyone, which is what the smallest failure rate needs."""
    rng = np.random.default_rng(1)
    clients = [
        Client(rng.standard_normal(length).astype(np.float32) * 5e-4, number < lost) for number in range(members)
    ]
    grid = Legacy(members, clients.__getitem__)
    manager = SimpleClientManager()
    for node in range(members):
        manager.register(GridClientProxy(node, grid, 1))
    strategy = FedAvg(fraction_fit=1.0, min_fit_clients=members, min_available_clients=members)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    legacy = LegacyContext(context, ServerConfig(num_rounds=1), strategy, manager)
    legacy.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    start = compat.parameters_to_arrayrecord(ndarrays_to_parameters([np.zeros(length, np.float32)]), keep_input=True)
    legacy.state.array_records[MAIN_PARAMS_RECORD] = start
    workflow = SecAggPlusWorkflow(
        num_shares=members, reconstruction_threshold=threshold, max_weight=1.0, clipping_range=1.0
    )
    began = time.process_time()
    workflow(grid, legacy)
    whole = time.process_time() - began
    stay = [client for client in clients if not client.lost]
    (mean,) = compat.arrayrecord_to_parameters(legacy.state.array_records[MAIN_PARAMS_RECORD], True).tensors
    assert len(mean) > 4 * length
    up = max(client.bytes_up for client in stay)
    return {
        "client_seconds": max(client.seconds for client in stay),
        "server_seconds": whole - sum(client.seconds for client in clients),
        "bytes_up": up,
        "bytes_up_of_4L": up / (4 * length),
    }
