"""The line that runs a run again, and what of a configuration must not change when a run goes on."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.checkpoint import Checkpoints, Progress
from finetune.commands.run import launch_parser, options_of
from finetune.config import flattened
from finetune.errors import CheckpointError
from finetune.experiment import _refuse_changes
from finetune.options import RunOptions, command_line
from finetune.state import State

pytestmark = pytest.mark.unit

Words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)
Options = st.builds(
    RunOptions,
    recipe=st.none() | Words,
    overrides=st.lists(Words, max_size=3),
    data=st.none() | Words,
    adapter=st.none() | Words,
    seed=st.none() | st.integers(-5, 2**40),
    resume=st.none() | Words,
)


@given(Options)
def test_the_recorded_line_gives_the_same_options(options: RunOptions) -> None:
    words = shlex.split(command_line(options))
    assert words[:3] == ["accelerate", "launch", "finetune/run.py"]
    parsed = launch_parser().parse_args(["run", *words[3:]])
    assert RunOptions(**options_of(parsed)) == options  # type: ignore[arg-type]


def test_the_recorded_line_by_hand() -> None:
    options = RunOptions("bert_cls", ["train.lr=3e-5", "data.text=my text"], "reviews.csv", "frozen", 1, "runs/mine")
    assert command_line(options) == (
        "accelerate launch finetune/run.py --recipe bert_cls --set train.lr=3e-5 --set 'data.text=my text' "
        "--data reviews.csv --adapter frozen --seed 1"
    )


def test_settings_are_flattened_to_what_trackers_take() -> None:
    assert flattened({"train": {"lr": 0.1, "trackers": ["a"], "clip": None}, "name": "x", "on": True}) == {
        "train.lr": 0.1, "train.trackers": "['a']", "train.clip": "None", "name": "x", "on": True,
    }  # fmt: skip


def identity(**more: object) -> dict[str, object]:
    return {"recipe": "r", "data": "d", "labels": ["no", "yes"], "updates": 9, "settings": {"train.lr": 0.1}, **more}


@pytest.mark.parametrize(
    ("now", "word"),
    [
        (identity(recipe="other"), "the recipe's source"),
        (identity(data="other"), "the data"),
        (identity(labels=["yes", "no"]), "the labels"),
        (identity(updates=10), "the planned updates"),
        (identity(settings={"train.lr": 0.2}), "train.lr (0.1 is now 0.2)"),
        (identity(settings={"train.lr": 0.1, "train.new": 1}), "train.new (None is now 1)"),
    ],
)
def test_a_run_does_not_go_on_with_something_else(tmp_path: Path, now: dict[str, object], word: str) -> None:
    checkpoints = Checkpoints(tmp_path, 1, print)
    _refuse_changes(checkpoints, now)
    checkpoints.save(State({"model": {}}, {}), Progress(3), identity())
    _refuse_changes(checkpoints, identity())
    with pytest.raises(CheckpointError) as caught:
        _refuse_changes(checkpoints, now)
    assert word in caught.value.problem
    assert caught.value.fix
