"""What a server is told when a node cannot answer, by the ClientApp itself."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.app import app
from ist_fed import wire
from ist_fed.errors import TaskError

SCENARIO = 'name="t"\ntask="extreme"\nrule={name="full"}\n[options]\nfeatures=3\nlabels=3\n%s\n[sizes]\nhidden1=4\n'
SECRET = "Mueller,Anna,1961-04-02"


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    (tmp_path / "ward-7").mkdir()
    path = tmp_path / "ward-7" / "patients.csv"
    path.write_text(f"{SECRET}\n")
    return path


def ask(scenario: str, node: dict[str, Any]) -> Message:
    """Send the question who it is to a node."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 7
    message = wire.profile_question(7, 60.0)
    message.metadata.__dict__.update(_message_id="m1", _src_node_id=1)
    run: dict[str, Any] = {"scenario": scenario, "set": ""}
    return app(message=message, context=Context(1, 7, node, RecordDict(), run, series_id=1))


def test_nothing_of_the_data_nor_where_they_lie(patients: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The server says which task is to read them."""
    reply = ask(SCENARIO % "", {"tasks": "", "device": "cpu", "partition-id": 0, "data": str(patients)})
    assert reply.error.reason == "it could not answer; its own log says why"
    assert SECRET in caplog.text


def test_what_the_operator_does_not_allow(patients: Path) -> None:
    node = {"tasks": "", "device": "cpu", "partition-id": 0, "num-partitions": 2}
    reply = ask(SCENARIO % f'path="{patients.parent}"\ntrain="patients.csv"', node)
    assert "this scenario's options.path is '" in reply.error.reason
    assert SECRET not in reply.error.reason
    reply = ask((SCENARIO % "").replace("extreme", "os:system"), node)
    assert "start the client with --allow-task os:system" in reply.error.reason


def test_in_a_simulation_everything(patients: Path) -> None:
    asked = SCENARIO % f'path="{patients.parent}"\ntrain="patients.csv"'
    with pytest.raises(TaskError, match=SECRET):
        ask(asked, {"partition-id": 0, "num-partitions": 2})
