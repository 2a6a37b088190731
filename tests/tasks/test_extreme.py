"""Files of many labels: what is written is read, and whatever is wrong in them is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ist_fed import Task, infer
from ist_fed.errors import TaskError
from ist_fed.symmetry import check_symmetry
from ist_fed.tasks import repository
from ist_fed.tasks.extreme import Extreme
from ist_fed.tasks.repository import read_points

FEATURES, LABELS = 20, 9
Point = tuple[list[int], list[tuple[int, float]]]

VALUES = st.floats(-1e6, 1e6, width=32)
POINTS = st.lists(
    st.tuples(
        st.lists(st.integers(0, LABELS - 1), max_size=4),
        st.lists(st.tuples(st.integers(0, FEATURES - 1), VALUES), max_size=6),
    ),
    min_size=1,
    max_size=12,
)
GOOD: list[Point] = [([at % LABELS, (at + 1) % LABELS], [(at % FEATURES, 0.5), (3, 1.25)]) for at in range(10)]


def written(path: Path, points: list[Point], end: str = "\n") -> Path:
    lines = [f"{len(points)} {FEATURES} {LABELS}"]
    for labels, pairs in points:
        lines.append(f"{','.join(map(str, labels))} {' '.join(f'{feature}:{value!r}' for feature, value in pairs)}")
    path.write_bytes((end.join(lines) + end).encode())
    return path


@settings(max_examples=50, deadline=None)
@given(points=POINTS, end=st.sampled_from(["\n", "\r\n"]), lines=st.sampled_from([1, 3, 1000]))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, points: list[Point], end: str, lines: int
) -> None:
    path = written(tmp_path_factory.mktemp("read") / "points.txt", points, end)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repository, "_LINES", lines)
        read = read_points(path)
    assert (len(read), read.features, read.labels) == (len(points), FEATURES, LABELS)
    for at, (labels, pairs) in enumerate(points):
        here = slice(read.feature_starts[at], read.feature_starts[at + 1])
        assert read.labels_of[read.label_starts[at] : read.label_starts[at + 1]].tolist() == labels
        assert list(zip(read.index[here].tolist(), read.values[here].tolist(), strict=True)) == pairs


def task(folder: Path, **options: object) -> Extreme:
    return Extreme(**{"path": str(folder), "features": FEATURES, "labels": LABELS, **options})


@settings(max_examples=30, deadline=None)
@given(points=POINTS, most=st.integers(1, 5))
def test_examples_are_the_points_that_have_a_label(
    tmp_path_factory: pytest.TempPathFactory, points: list[Point], most: int
) -> None:
    folder = tmp_path_factory.mktemp("examples")
    path = written(folder / "train.txt", points)
    labelled = [point for point in points if point[0]]
    made = task(folder, features_each=most, labels_each=3)
    if not labelled:
        with pytest.raises(TaskError, match="there are too few that have one"):
            made.local_data(path)
        return
    inputs, targets = made.local_data(path).tensors
    assert len(inputs) == len(targets) == len(labelled)
    for (index, values), target, (labels, pairs) in zip(inputs, targets, labelled, strict=True):
        assert [label for label in target.tolist() if label >= 0] == labels[:3]
        kept = pairs if len(pairs) <= most else sorted(pairs, key=lambda pair: -abs(pair[1]))[:most]
        found = list(zip(index.long().tolist(), values.tolist(), strict=True))
        assert found[: len(kept)] == kept
        assert all(pair == (0, 0.0) for pair in found[len(kept) :])


def test_clients_share_the_points_and_the_server_tests_on_others(tmp_path: Path) -> None:
    written(tmp_path / "train.txt", GOOD)
    written(tmp_path / "test.txt", GOOD[:4])
    made = task(tmp_path, test_points=3)
    parts = [made.client_data(client, 3) for client in range(3)]
    assert [len(part) for part in parts] == [4, 3, 3]
    whole = made.client_data(0, 1).tensors[1]
    assert torch.equal(torch.stack([parts[at % 3].tensors[1][at // 3] for at in range(10)]), whole)
    assert len(made.test_data()) == 3
    assert len(made.calibration_data()) == 4
    assert [len(task(tmp_path, train_points=5).client_data(client, 2)) for client in range(2)] == [3, 2]


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_its_network_can_be_cut(tmp_path: Path, norm: str) -> None:
    written(tmp_path / "test.txt", GOOD)
    made = task(tmp_path, norm=norm)
    assert isinstance(made, Task)
    inputs, targets = made.test_data().tensors
    axes = infer(made.build, {"hidden1": 6}, made.declared)
    batch = (inputs.double(), targets)
    check_symmetry(made.build, {"hidden1": 6}, axes, lambda model: made.loss(model, batch))


def test_the_score_is_precision_at_one(tmp_path: Path) -> None:
    model = task(tmp_path).build(hidden1=4)
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.arange(LABELS) == 5)
    targets = torch.tensor([[5, -1], [1, 5], [0, 1], [2, -1]])
    assert float(task(tmp_path).score(model, (torch.zeros(4, 2, 3), targets))) == 0.5
    assert task(tmp_path).metric == "precision_at_1"


# --- What is refused --------------------------------------------------------------------------------------------------


def test_without_the_data_it_says_where_to_get_and_to_put_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IST_FED_DATA", raising=False)
    with pytest.raises(TaskError, match=r"but neither .* get .* \(http://manikvarma.org/.* options.path") as caught:
        Extreme().test_data()
    assert str(caught.value).count("\n") == 0


def test_without_a_file_it_says_which(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"reads '.*train.txt', but it is not there; put train.txt and test.txt into"):
        task(tmp_path).client_data(0, 2)


@pytest.mark.parametrize("name", ["/etc/passwd", "../../etc/passwd", "a/../../b"])
def test_a_file_of_the_data_set_lies_in_its_folder(name: str) -> None:
    for option in ("train", "test"):
        with pytest.raises(TaskError, match=f"{option} must name a file in the data set's folder, but is '{name}'"):
            Extreme(**{option: name})  # type: ignore[arg-type]


def test_the_data_lie_where_those_of_other_tasks_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "amazon-670k").mkdir()
    written(tmp_path / "amazon-670k" / "test.txt", GOOD)
    monkeypatch.setenv("IST_FED_DATA", str(tmp_path))
    assert len(Extreme(features=FEATURES, labels=LABELS).test_data()) == len(GOOD)


@pytest.mark.parametrize(
    ("header", "shown"),
    [("", "''"), ("3 20", "'3 20'"), ("3 20 9 1", "9 1"), ("3 x 9", "3 x 9"), ("0 20 9", "0 20 9"), ("-3 20 9", "-3")],
)
def test_a_wrong_header(tmp_path: Path, header: str, shown: str) -> None:
    (tmp_path / "points.txt").write_text(f"{header}\n1 2:3\n")
    with pytest.raises(TaskError, match=r"the first line of '.*points.txt' must say how many") as caught:
        read_points(tmp_path / "points.txt")
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("9 1:1", "the label '9'"),
        ("-1 1:1", "the label '-1'"),
        ("1,,2 1:1", "the label ''"),
        ("1.0 1:1", "the label '1.0'"),
        ("1:1 2:2", "the label '1:1'"),
        ("99999999999999999999 1:1", "the label '99999999999999999999'"),
        ("1 20:1", "the feature '20' in '20:1'"),
        ("1 -1:1", "the feature '-1' in '-1:1'"),
        ("1 1.5:1", "the feature '1.5' in '1.5:1'"),
        ("1 x:1", "the feature 'x' in 'x:1'"),
        ("1 :1", "the feature '' in ':1'"),
        ("1 5", "the value '' in '5'"),
        ("1 5:", "the value '' in '5:'"),
        ("1 5:1:2", "the value '1:2' in '5:1:2'"),
        ("1 5:1.2.3", "the value '1.2.3' in '5:1.2.3'"),
        ("1 5:1-2", "the value '1-2' in '5:1-2'"),
        ("1 5:nan", "the value 'nan' in '5:nan'"),
        ("1 5:inf", "the value 'inf' in '5:inf'"),
        ("1 5:1e99", "the value '1e99' in '5:1e99'"),
        ("1 5:1_0", "the value '1_0' in '5:1_0'"),
        ("1 5:1 3: 4:2", "the value '' in '3:'"),
        ("1 5:\x00", "the value"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "points.txt").write_text(f"4 {FEATURES} {LABELS}\n1 2:3\n0,8 1:1 19:2\n{line}\n{line}\n")
    with pytest.raises(TaskError, match=r"labels from 0 to 8, features from 0 to 19 and finite values") as caught:
        read_points(tmp_path / "points.txt")
    assert f"line 4 of '{tmp_path / 'points.txt'}' has {said}" in str(caught.value)


def test_files_that_are_too_short_or_too_long_or_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "points.txt", GOOD)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(TaskError, match="says 10 points, but the file ends after 9"):
        read_points(path)
    assert len(read_points(path, limit=9)) == 9
    path.write_bytes(whole + b"1 2:3\n")
    with pytest.raises(TaskError, match="says 10 points, but there are more lines"):
        read_points(path)
    path.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(TaskError, match="the first line of"):
        read_points(path)
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        read_points(tmp_path / "none.txt")
    with pytest.raises(TaskError, match="cannot be read: Is a directory"):
        read_points(tmp_path)


def test_a_file_of_another_data_set(tmp_path: Path) -> None:
    path = written(tmp_path / "points.txt", GOOD)
    with pytest.raises(TaskError, match=r"of 135909 features and 670091 labels, but the header of .* says 20 and 9"):
        Extreme().local_data(path)


@pytest.mark.parametrize("options", [{"labels": 1}, {"features": 0}, {"train_points": -1}, {"labels_each": 0}])
def test_options_out_of_range(options: dict[str, object]) -> None:
    with pytest.raises(TaskError, match="must be a whole number, at least"):
        Extreme(**options)


def test_values_are_the_nearest_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "points.txt"
    path.write_text(f"1 {FEATURES} {LABELS}\n1 2:0.1 3:1e-3\n")
    assert read_points(path).values.tolist() == [np.float32(0.1), np.float32(1e-3)]
