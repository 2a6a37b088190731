"""A scenario file: what it says, and what is wrong with it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ist_fed import rules
from ist_fed.errors import ScenarioError
from ist_fed.network import Network, Tier
from ist_fed.privacy import Privacy
from ist_fed.scenario import (
    Record,
    Rounds,
    Scenario,
    differences,
    from_run_config,
    load_scenario,
    parse_scenario,
)
from ist_fed.train import Training

SCENARIOS = sorted((Path(__file__).parents[1] / "scenarios").glob("*.toml"))

LEAST = """
name = "least"
task = "digits"
[sizes]
hidden1 = 32
[rule]
name = "disjoint"
groups = 2
"""


def error(text: str, *overrides: str) -> str:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario(text, overrides)
    said = str(caught.value)
    assert "\n" not in said
    assert "Traceback" not in said
    return said


# --- What it says -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_has_its_default() -> None:
    assert parse_scenario(LEAST) == Scenario(
        name="least",
        task="digits",
        sizes={"hidden1": 32},
        rule={"name": "disjoint", "groups": 2},
        options={},
        clients=8,
        rounds=40,
        local_steps=40,
        seed=0,
        training=Training(),
        round=Rounds(),
        record=Record(),
        device="auto",
    )


def test_every_key_can_be_set() -> None:
    scenario = parse_scenario(
        """
        name = "all_of-it.2"
        task = "my_package.my_task:make"
        clients = 3
        rounds = 5
        local_steps = 7
        seed = 11
        device = "cuda:1"
        sizes = { heads0 = 4, ffn0 = 64 }
        options = { alpha = 0.5, nested = { deep = [1, 2] } }
        rule = { name = "full" }
        training = { optimizer = "adamw", lr = 1, momentum = 0.5, weight_decay = 0.1, batch_size = 4, clip_norm = 1.0,
                     schedule = "cosine", warmup = 2 }
        round = { deadline = 60, min_clients = 2, min_replies = 2, weighting = "uniform", adapt = true }
        record = { evaluate_every = 2, checkpoint_every = 4, keep = 1, tensorboard = false }
    """.replace(",\n                     ", ", ")
    )
    assert scenario.training == Training(
        optimizer="adamw",
        lr=1.0,
        momentum=0.5,
        weight_decay=0.1,
        batch_size=4,
        clip_norm=1.0,
        schedule="cosine",
        warmup=2,
    )
    assert isinstance(scenario.training.lr, float)
    assert scenario.round == Rounds(deadline=60.0, min_clients=2, min_replies=2, weighting="uniform", adapt=True)
    assert scenario.record == Record(evaluate_every=2, checkpoint_every=4, keep=1, tensorboard=False)
    assert scenario.options == {"alpha": 0.5, "nested": {"deep": [1, 2]}}
    assert scenario.make_rule() == rules.Full()
    assert parse_scenario(scenario.to_toml()) == scenario


def test_a_network_is_read_with_its_tiers_and_written_again() -> None:
    text = f"""{LEAST}
        [network]
        flops = 5e9
        up = 10e6
        spread = 8
        compute = "measured"
        [network.tiers.phone]
        share = 3
        flops = 1e9
        [network.tiers.desk]
    """
    scenario = parse_scenario(text)
    tiers = {"phone": Tier(share=3.0, flops=1e9), "desk": Tier()}
    assert scenario.network == Network(flops=5e9, up=10e6, spread=8.0, compute="measured", tiers=tiers)
    assert parse_scenario(scenario.to_toml()) == scenario
    assert "network.tiers.phone.speed" in error(text, "network.tiers.phone.speed=1")
    assert "[network.tiers.phone] dropout must be a probability" in error(text, "network.tiers.phone.dropout=2.0")


def test_a_private_run_has_no_simulated_network() -> None:
    private = Privacy(mode="central", epsilon=4.0)
    with pytest.raises(ValueError, match=r"tells who was drawn for it, so a private run has no \[network\]"):
        Scenario(
            name="x",
            task="digits",
            sizes={"h": 8},
            rule={"name": "private"},
            privacy=private,
            network=Network(up=1.0),
            round=Rounds(weighting="uniform"),
        )


def test_privacy_that_says_no_mode_is_refused_and_not_ignored() -> None:
    said = "'central' or 'secure', and without it nothing is"
    assert said in error(LEAST, "privacy.epsilon=4.0")
    assert said in error(LEAST + "\n[privacy]\nnoise_multiplier = 1.0\n")
    assert parse_scenario(LEAST, ["privacy.mode=off", "privacy.epsilon=4.0"]).privacy.mode == "off"


def test_the_rule_is_made_with_its_fields() -> None:
    assert parse_scenario(LEAST).make_rule() == rules.Disjoint(groups=2)
    assert parse_scenario(LEAST, ["rule.rotate=false"]).make_rule() == rules.Disjoint(groups=2, rotate=False)


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_shipped_scenarios_are_read_and_written(path: Path) -> None:
    scenario = load_scenario(path)
    assert scenario.name == path.stem
    assert parse_scenario(scenario.to_toml()) == scenario
    assert parse_scenario(parse_scenario(scenario.to_toml()).to_toml()) == scenario
    assert path.read_text().startswith("# ")


def test_to_toml_fills_every_default_in() -> None:
    text = parse_scenario(LEAST).to_toml()
    for key in ("local_steps = 40", "lr = 0.1", "deadline = 3600.0", "keep = 3", 'device = "auto"'):
        assert key in text


def test_a_run_configuration_holds_the_text_or_a_path_in_the_app(tmp_path: Path) -> None:
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "least.toml").write_text(LEAST)
    assert from_run_config({"scenario": "scenarios/least.toml"}, tmp_path) == parse_scenario(LEAST)
    assert from_run_config({"scenario": LEAST, "run": "x"}, tmp_path) == parse_scenario(LEAST)


# --- Overrides --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("training.lr=0.05", "training.lr", 0.05),
        ("training.lr = 1e-3 ", "training.lr", 0.001),
        ("training.lr=1", "training.lr", 1.0),
        ("clients=3", "clients", 3),
        ("sizes.hidden1=64", "sizes.hidden1", 64),
        ("sizes.hidden9=64", "sizes.hidden9", 64),
        ("name=other", "name", "other"),
        ('name="other"', "name", "other"),
        ("record.tensorboard=false", "record.tensorboard", False),
        ("options.alpha=0.1", "options.alpha", 0.1),
        ("options.note=a=b", "options.note", "a=b"),
        ("task=my.module:make", "task", "my.module:make"),
        ("device=cuda:0", "device", "cuda:0"),
        ("rule.groups=4", "rule.groups", 4),
        ("options={ a = [1, 2] }", "options.a", [1, 2]),
        ("options.text=", "options.text", ""),
        ("options.text=1\ny = 3", "options.text", "1\ny = 3"),
    ],
)
def test_an_override_is_typed_like_the_file(override: str, path: str, value: Any) -> None:
    found: Any = parse_scenario(LEAST, [override])
    for key in path.split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert (found, type(found)) == (value, type(value))


def test_later_overrides_win_and_the_file_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "least.toml"
    path.write_text(LEAST)
    assert load_scenario(path, ["clients=3", "clients=5"]).clients == 5
    assert path.read_text() == LEAST


@pytest.mark.parametrize("override", ["training.lr", "", "=3", ".lr=3", "training.=3", "a..b=3", "  "])
def test_an_override_that_is_none(override: str) -> None:
    assert "an override is written key=value, as in training.lr=0.05, but is" in error(LEAST, override)


def test_an_override_below_a_value() -> None:
    assert (
        error("clients = 8" + LEAST, "clients.many=3")
        == "'clients.many' cannot be set: 'clients' is a value, not a table"
    )
    assert "'sizes.hidden1' is a value" in error(LEAST, "sizes.hidden1.x=3")


# --- What is wrong ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cleints=3", "there is no key 'cleints'; did you mean 'clients'?"),
        ("trainning.lr=3", "there is no key 'trainning'; did you mean 'training'?"),
        ("training.learning_rate=3", "there is no key 'training.learning_rate'; known: batch_size, "),
        ("training.momentun=0.5", "there is no key 'training.momentun'; did you mean 'momentum'?"),
        ("record.evaluate=3", "there is no key 'record.evaluate'; did you mean 'evaluate_every'?"),
        ("round.dedline=3", "there is no key 'round.dedline'; did you mean 'deadline'?"),
        ("rule.group=3", "there is no key 'rule.group' of rule 'disjoint'; did you mean 'groups'?"),
        ("lr=0.1", "there is no key 'lr'; did you mean 'training.lr'?"),
        ("record.deadline=9", "there is no key 'record.deadline'; did you mean 'round.deadline'?"),
        ("groups=4", "there is no key 'groups'; did you mean 'rule.groups'?"),
        ("zzz=1", "there is no key 'zzz'; known: clients, device, example_privacy, "),
    ],
)
def test_an_unknown_key_names_the_nearest(override: str, message: str) -> None:
    assert error(LEAST, override).startswith(message)


def test_a_key_of_a_rule_that_has_none() -> None:
    said = error(LEAST.replace("disjoint", "full"))
    assert said == "there is no key 'rule.groups' of rule 'full'; it has no keys"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clients=3.0", "'clients' must be a whole number, but is 3.0"),
        ("clients=true", "'clients' must be a whole number, but is True"),
        ("clients=many", "'clients' must be a whole number, but is 'many'"),
        ("seed=[1]", "'seed' must be a whole number, but is [1]"),
        ("training.lr=.05", "'training.lr' must be a number with a digit on each side of its point, such as 0.05, but"),
        ("training.lr=true", "'training.lr' must be a number"),
        ("name=3", "'name' must be text, written in \"quotes\", but is 3"),
        ("record.tensorboard=no", "'record.tensorboard' must be true or false, but is 'no'"),
        ("record.tensorboard=1", "'record.tensorboard' must be true or false, but is 1"),
        ("sizes.hidden1=3.5", "'sizes.hidden1' must be a whole number, but is 3.5"),
        ("sizes=3", "'sizes' must be a table, written [sizes], but is 3"),
        ("training=3", "'training' must be a table, written [training], but is 3"),
        ("training=[1]", "'training' must be a table, written [training], but is [1]"),
        ("training.optimizer=lion", "'training.optimizer' must be one of 'sgd', 'adam', 'adamw', but is 'lion'"),
        ("training.optimizer=[1]", "'training.optimizer' must be one of"),
        ("training.schedule=linear", "'training.schedule' must be one of 'constant', 'cosine', but is 'linear'"),
        ("round.weighting=size", "'round.weighting' must be one of 'examples', 'uniform', but is 'size'"),
        ("rule.groups=two", "'rule.groups' must be a whole number, but is 'two'"),
        ("rule.rotate=1", "'rule.rotate' must be true or false, but is 1"),
    ],
)
def test_a_wrong_type_is_named(override: str, message: str) -> None:
    assert error(LEAST, override).startswith(message)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("clients=0", "clients must be at least 1, but is 0"),
        ("rounds=-1", "rounds must be at least 1, but is -1"),
        ("local_steps=0", "local_steps must be at least 1, but is 0"),
        ("seed=-1", "seed must be a whole number from 0 to 2^63 - 1, but is -1"),
        (f"seed={1 << 63}", "seed must be a whole number from 0 to 2^63 - 1"),
        ("sizes.hidden1=0", "sizes.hidden1 must be at least 1, but is 0"),
        ("sizes={}", "[sizes] must name at least one axis and its units, such as hidden1 = 512, but is empty"),
        ("name=../x", "name becomes a folder: at most 64 of A-Z, a-z, 0-9, '.', '_' and '-', and no '.' first, but"),
        ('name=""', "name becomes a folder"),
        ("name=.hidden", "name becomes a folder"),
        ("name=a b", "name becomes a folder"),
        ("name=é", "name becomes a folder"),
        ('name="a\\n"', "name becomes a folder"),
        (f"name={'x' * 65}", "name becomes a folder"),
        ("device=gpu", "device must be auto, cpu, cuda, cuda:1 and so on, or mps, but is 'gpu'"),
        ("device=cuda:x", "device must be"),
        ("training.lr=0.0", "[training] lr must be positive, but is 0"),
        ("training.lr=nan", "[training] lr must be a finite number, not negative, but is nan"),
        ("training.momentum=1.0", "[training] momentum must be less than 1, but is 1.0"),
        ("training.batch_size=0", "[training] batch_size must be a whole number, at least 1, but is 0"),
        ("round.deadline=0", "[round] deadline must be a positive number of seconds, but is 0.0"),
        ("round.deadline=nan", "[round] deadline must be a positive number of seconds, but is nan"),
        ("round.deadline=inf", "[round] deadline must be a positive number of seconds, but is inf"),
        ("round.min_clients=-1", "[round] min_clients must not be negative, but is -1; 0 means all of them"),
        ("round.min_clients=9", "round.min_clients must be at most clients, 8, but is 9"),
        ("round.min_replies=0", "[round] min_replies must be at least 1, but is 0"),
        ("round.min_replies=9", "round.min_replies must be at most clients, 8, but is 9"),
        ("record.keep=0", "[record] keep must be at least 1, but is 0"),
        ("record.evaluate_every=0", "[record] evaluate_every must be at least 1, but is 0"),
        ("record.checkpoint_every=0", "[record] checkpoint_every must be at least 1, but is 0"),
        ("rule.groups=0", "[rule] groups, min_units and keep must be at least 1, but are 0, 16 and 1"),
        ("rule.name=disjiont", "'rule.name' must name a rule, but is 'disjiont'; did you mean 'disjoint'?"),
        ("rule.name=3", "'rule.name' must name a rule, but is 3; known: "),
        ("rule.name=[1]", "'rule.name' must name a rule, but is [1]; known: "),
    ],
)
def test_a_wrong_value_is_named(override: str, message: str) -> None:
    assert error(LEAST, override).startswith(message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            'name = "least"',
            "there must be a key 'name', but it is missing; add it (what the run's folder is called",
        ),
        ('task = "digits"', "there must be a key 'task', but it is missing; add it (a built-in task"),
        ("[sizes]\nhidden1 = 32", "there must be a key 'sizes', but it is missing; add it (units of each axis"),
        ('[rule]\nname = "disjoint"\ngroups = 2', "there must be a key 'rule', but it is missing; add it (`name` and"),
        ("groups = 2", "there must be a key 'rule.groups' of rule 'disjoint', but it is missing; add it (how many"),
        (
            'name = "disjoint"',
            "there must be a key 'rule.name', but it is missing; add it (which rule deals",
        ),
    ],
)
def test_a_missing_key_says_what_it_means(line: str, message: str) -> None:
    assert line in LEAST
    assert error(LEAST.replace(line, "", 1)).startswith(message)


def test_what_is_not_toml_names_the_place() -> None:
    assert re.match(r"a scenario is written in TOML, but this is not: .*line 2", error("a = 1\nname = \n"))
    error("a = " + "[" * 100_000)


class TestFiles:
    def test_the_file_is_named_in_every_error(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(LEAST)
        path.write_text(f"cleints = 3\n{LEAST}")
        with pytest.raises(ScenarioError, match=r"mine\.toml: there is no key 'cleints'"):
            load_scenario(path)

    def test_the_settings_are_named_beside_the_file(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text(LEAST)
        with pytest.raises(ScenarioError, match=r"mine\.toml with --set rounds=0 --set 'name=a b': name becomes"):
            load_scenario(path, ["rounds=0", "name=a b"])

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match=r"scenario '.*none\.toml' cannot be read: No such file or directory$"):
            load_scenario(tmp_path / "none.toml")

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ScenarioError, match="cannot be read: Is a directory"):
            load_scenario(tmp_path)

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "model.toml"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ScenarioError, match=r"a scenario is a text file in UTF-8, but .* is not"):
            load_scenario(path)

    def test_the_mark_that_windows_puts_first(self, tmp_path: Path) -> None:
        path = tmp_path / "windows.toml"
        path.write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
        assert load_scenario(str(path)) == parse_scenario(LEAST)


# --- Differences ------------------------------------------------------------------------------------------------------


def test_no_difference() -> None:
    assert differences(parse_scenario(LEAST), parse_scenario(LEAST)) == []


def test_differences_name_the_key_and_both_values() -> None:
    one = parse_scenario(LEAST)
    other = parse_scenario(LEAST, ["training.lr=0.5", "sizes.hidden2=8", "rule.groups=1", "options.alpha=0.5"])
    assert differences(one, other) == [
        "options.alpha: not set → 0.5",
        "rule.groups: 2 → 1",
        "sizes.hidden2: not set → 8",
        "training.lr: 0.1 → 0.5",
    ]
    assert differences(replace(other, sizes=one.sizes), other) == ["sizes.hidden2: not set → 8"]
