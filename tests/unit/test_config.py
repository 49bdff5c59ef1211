"""Settings: each kind of override, and what a wrong key or value is told."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from finetune.config import (
    ModelSettings,
    Section,
    TextClassificationData,
    TrainSettings,
    apply_override,
    from_mapping,
    settings_of,
    unknown_key,
)
from finetune.errors import ConfigError

pytestmark = pytest.mark.unit


class Inner(Section):
    sizes: list[int] = Field(default_factory=lambda: [1])
    table: dict[str, int] = Field(default_factory=dict)
    share: float | None = 0.5


class Toy(Section):
    """A recipe's settings in small: sections, one of them with kinds of settings that a recipe may add."""

    model: ModelSettings
    data: TextClassificationData
    train: TrainSettings
    own: Inner


@pytest.fixture
def toy() -> Toy:
    return Toy(
        model=ModelSettings(name="m"), data=TextClassificationData(source="d"), train=TrainSettings(), own=Inner()
    )


def value(toy: Toy, dotted: str) -> object:
    found: object = toy
    for part in dotted.split("."):
        found = getattr(found, part)
    return found


def refused(toy: Toy, override: str) -> ConfigError:
    before = toy.model_dump()
    with pytest.raises(ConfigError) as caught:
        apply_override(toy, override, "toy")
    assert toy.model_dump() == before
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.parametrize(
    ("override", "dotted", "expected"),
    [
        ("train.lr=3e-5", "train.lr", 3e-5),
        ("train.epochs=2", "train.epochs", 2.0),
        ("train.batch_size=16", "train.batch_size", 16),
        (" train.seed = 7 ", "train.seed", 7),
        ("train.length_buckets=false", "train.length_buckets", False),
        ("train.activation_checkpointing=yes", "train.activation_checkpointing", True),
        ("train.precision=bf16", "train.precision", "bf16"),
        ("train.micro_batch_size=4", "train.micro_batch_size", 4),
        ("train.micro_batch_size=auto", "train.micro_batch_size", "auto"),
        ("train.max_updates=5", "train.max_updates", 5),
        ("train.max_updates=none", "train.max_updates", None),
        ("train.clip_grad_norm=None", "train.clip_grad_norm", None),
        ("train.clip_grad_norm=null", "train.clip_grad_norm", None),
        ("train.trackers=tensorboard, wandb", "train.trackers", ["tensorboard", "wandb"]),
        ("train.trackers=", "train.trackers", []),
        ('train.trackers=["a,b", "c"]', "train.trackers", ["a,b", "c"]),
        ("own.sizes=1,2,3", "own.sizes", [1, 2, 3]),
        ("own.sizes=[4]", "own.sizes", [4]),
        ('own.table={"a": 1}', "own.table", {"a": 1}),
        ("own.share=none", "own.share", None),
        ("model.dropout=0", "model.dropout", 0.0),
        ("model.name=org/none=1", "model.name", "org/none=1"),
        ("data.text=none", "data.text", None),
        ("data.source=my file, v2.csv", "data.source", "my file, v2.csv"),
    ],
)
def test_text_is_read_as_the_settings_own_type(toy: Toy, override: str, dotted: str, expected: object) -> None:
    apply_override(toy, override, "toy")
    assert value(toy, dotted) == expected
    assert type(value(toy, dotted)) is type(expected)


def test_a_name_that_cannot_be_none_keeps_the_word(toy: Toy) -> None:
    apply_override(toy, "data.source=none", "toy")
    assert toy.data.source == "none"


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("train.lr=fast", "valid number"),
        ("train.lr=", "valid number"),
        ("train.lr=0", "greater than 0"),
        ("train.lr=-1e-5", "greater than 0"),
        ("train.lr=nan", "finite"),
        ("train.lr=inf", "finite"),
        ("train.epochs=inf", "finite"),
        ("train.batch_size=1.5", "integer"),
        ("train.batch_size=0", "greater than or equal to 1"),
        ("train.batch_size=none", "integer"),
        ("train.seed=-1", "greater than or equal to 0"),
        ("train.seed=4294967296", "less than"),
        ("train.length_buckets=maybe", "boolean"),
        ("train.precision=int8", "'auto', 'fp32', 'bf16' or 'fp16'"),
        ("train.micro_batch_size=some", "'auto'"),
        ("train.micro_batch_size=0", "greater than or equal to 1"),
        ("model.dropout=1", "less than 1"),
        ("data.valid_share=0.5", "less than 0.5"),
        ("data.max_tokens=7", "greater than or equal to 8"),
        ("own.sizes=1,b", "integer"),
    ],
)
def test_a_wrong_value_names_the_key_the_text_and_what_the_setting_means(toy: Toy, override: str, word: str) -> None:
    error = refused(toy, override)
    key, _, text = override.partition("=")
    assert error.problem.startswith(f"{key}={text} is refused: ")
    assert word in error.problem
    assert "pydantic" not in str(error)
    if not key.startswith("own."):
        assert error.fix.startswith(f"{key}: ")
        assert len(error.fix) > len(key) + 20


@pytest.mark.parametrize("override", ["own.sizes=[1", "own.table={a", "own.table=1,"])
def test_broken_json_shows_how_to_write_it(toy: Toy, override: str) -> None:
    error = refused(toy, override)
    assert "JSON" in error.problem
    assert error.fix.startswith("Write ")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("train.lrr", "train.lr"),
        ("lr", "train.lr"),
        ("train.batchsize", "train.batch_size"),
        ("batch_size", "train.batch_size"),
        ("model.droput", "model.dropout"),
        ("data.sources", "data.source"),
        ("own.sise", "own.sizes"),
    ],
)
def test_an_unknown_key_is_told_the_one_that_was_meant(toy: Toy, key: str, meant: str) -> None:
    error = refused(toy, f"{key}=1")
    assert error.problem == f"{key} is not a setting of toy."
    assert error.fix == f"Did you mean {meant}? `finetune show toy` lists them all."


@pytest.mark.parametrize("override", ["qqqq=1", "=3", "train=1", "model=m"])
def test_what_is_like_no_key_gets_the_list(toy: Toy, override: str) -> None:
    assert "`finetune show toy` lists them all." in refused(toy, override).fix


@pytest.mark.parametrize("override", ["train.lr", "", "train.lr:3"])
def test_no_equals_sign_shows_the_form(toy: Toy, override: str) -> None:
    assert "--set train.lr=3e-5" in refused(toy, override).fix


def test_every_setting_is_listed_and_says_what_it_means(toy: Toy) -> None:
    found = {dotted: (section, name) for dotted, section, name in settings_of(toy)}
    assert {"model.name", "data.text", "train.lr", "own.table"} <= set(found)
    assert len(found) == 3 + 10 + len(TrainSettings.model_fields) + 3
    for dotted, (section, name) in found.items():
        if not dotted.startswith("own."):
            assert type(section).model_fields[name].description, dotted


def test_assignment_in_a_recipe_is_checked_where_it_stands(toy: Toy) -> None:
    with pytest.raises(ValidationError, match="lrr"):
        toy.train.lrr = 1  # type: ignore[attr-defined]
    with pytest.raises(ValidationError, match="greater than 0"):
        toy.train.lr = -1.0


def test_defaults_are_not_shared_between_configs() -> None:
    TrainSettings().trackers.append("wandb")
    assert TrainSettings().trackers == []


def test_from_mapping_names_the_file_the_key_and_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"^card.md: unknown key train.lrr \(did you mean lr\?\)"):
        from_mapping(Toy, {**_toy_values(), "train": {"lrr": 1}}, "card.md")
    with pytest.raises(ConfigError, match=r"card.md: train.lr: input should be greater than 0; unknown key zzz$"):
        from_mapping(Toy, {**_toy_values(), "train": {"lr": 0}, "zzz": 1}, "card.md")
    built = from_mapping(Toy, _toy_values(), "card.md")
    assert built.train.lr == 0.5


def _toy_values() -> dict[str, object]:
    return {"model": {"name": "m"}, "data": {"source": "d"}, "train": {"lr": 0.5}, "own": {}}


def test_unknown_key_without_a_recipe_suggests_only() -> None:
    assert unknown_key("lr", ["train.lr"], "is unknown").fix == "Did you mean train.lr?"
    assert unknown_key("zzz", ["train.lr"], "is unknown").fix == ""
