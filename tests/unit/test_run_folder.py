"""Run folders: never shared, never overwritten, found again; a record that is damaged is named."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from finetune.errors import ConfigError
from finetune.experiment import run
from finetune.options import RunOptions, resolve
from finetune.recipe import load_recipe
from finetune.run_folder import check_output, find_run, make_run_folder, read_record

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune.run_folder.time.strftime", lambda _: "20260101-120000")


def record(**more: Any) -> dict[str, Any]:
    loaded = load_recipe("bert_cls")
    return {
        "status": "interrupted",
        "task": "text-classification",
        "recipe": {"name": "bert_cls", "origin": "packaged", "hash": loaded.sha256},
        "config": loaded.resolved(),
        "data": {"labels": ["no", "yes"]},
        **more,
    }


def write_record(content: Any, name: str = "some") -> Path:
    folder = Path(name)
    folder.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, (str, bytes)) else json.dumps(content)
    (folder / "run.json").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def test_runs_that_start_in_one_second_get_folders_of_their_own() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_run_folder("bert_cls", None), range(8)))
    assert len(set(made)) == 8
    assert {folder.name for folder in made} == {
        "bert_cls-20260101-120000", *(f"bert_cls-20260101-120000-{number}" for number in range(2, 9))
    }  # fmt: skip
    assert not list(Path("runs").glob(".latest-*"))


def test_latest_points_at_the_newest_run_and_still_does_when_runs_moves() -> None:
    first, second = (write_record(record(), str(make_run_folder("r", None))) for _ in range(2))
    assert first != second
    assert find_run("latest") == second.resolve()
    Path("runs").rename("moved")
    assert Path("moved/latest").resolve() == Path("moved", second.name).resolve()


def test_output_is_the_folder_itself_and_leaves_latest_alone() -> None:
    newest = write_record(record(), str(make_run_folder("r", None)))
    assert make_run_folder("r", "deep/er/mine") == Path("deep/er/mine")
    assert Path("deep/er/mine").is_dir()
    assert find_run("latest") == newest.resolve()


def test_an_output_that_could_lose_something_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: Any) -> None:
        raise AssertionError("a recipe was loaded")

    monkeypatch.setattr("finetune.recipe.load_recipe", loaded)
    Path("full").mkdir()
    Path("full/notes.txt").write_text("mine")
    Path("file").write_text("mine")
    for output, problem, fix in (
        ("full", "--output full is not empty.", "--resume full"),
        ("file", "--output file is a file.", "folder"),
        ("file/below", "--output file/below", "folder"),
        ("n" * 300, "--output nnn", "folder"),
    ):
        with pytest.raises(ConfigError) as caught:
            run(RunOptions(recipe="bert_cls", output=output))
        assert caught.value.problem.startswith(problem)
        assert fix in caught.value.fix
    assert sorted(path.name for path in Path().iterdir()) == ["file", "full"]
    Path("empty").mkdir()
    check_output("empty")
    check_output("new")
    check_output(None)


def test_a_folder_that_can_not_be_made_is_one_message() -> None:
    Path("runs").write_text("a file of that name")
    with pytest.raises(ConfigError, match="runs"):
        make_run_folder("r", None)


def test_resuming_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--resume latest: runs/latest/run.json is not there") as caught:
        find_run("latest")
    assert "newest run" in caught.value.fix
    Path("empty").mkdir()
    for resume in ("empty", "missing", "n" * 300):
        with pytest.raises(ConfigError, match="--resume"):
            find_run(resume)
    with pytest.raises(ConfigError, match="No recipe is named"):
        resolve(RunOptions())
    with pytest.raises(ConfigError, match="--output does not go with --resume"):
        run(RunOptions(resume=str(write_record(record())), output="other"))


def test_a_completed_run_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_record(record(status="completed"))
    assert run(RunOptions(resume=str(folder))) == 0
    assert "completed already" in capsys.readouterr().out
    assert list(folder.iterdir()) == [folder / "run.json"]


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in record().items() if key not in keys}


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "null", b"\xff\xfe{}", '{"recipe": {', {"recipe": "bert_cls"}, {"recipe": {}},
        without("status"), without("config"), without("task"), without("data"), record(config=3), record(status=3),
        record(data=[]), record(data={"labels": 3}), record(recipe={"name": 3, "origin": 4}), "[" * 100_000,
    ],
    ids=lambda content: str(content)[:30],
)  # fmt: skip
def test_a_damaged_record_is_named_and_nothing_is_started(content: Any) -> None:
    folder = write_record(content)
    with pytest.raises(ConfigError, match=r"some/run.json"):
        read_record(folder)
    with pytest.raises(ConfigError, match=r"some/run.json"):
        run(RunOptions(resume="some"))
    assert list(folder.iterdir()) == [folder / "run.json"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda config: config["train"].update(lr="fast"), "train.lr"),
        (lambda config: config["train"].pop("lr"), "train.lr"),
        (lambda config: config.update(train=5), "train"),
        (lambda config: config.update(adapter="full"), "adapter"),
        (lambda config: config.update(adapter={"name": "zz"}), "zz"),
        (lambda config: config.pop("adapter"), "adapter"),
    ],
)
def test_a_record_whose_settings_are_damaged_names_the_setting(change: Any, word: str) -> None:
    content = record()
    change(content["config"])
    write_record(content)
    with pytest.raises(ConfigError, match=word):
        resolve(RunOptions(resume="some"))


def test_resume_takes_the_records_settings_and_then_the_overrides() -> None:
    content = record()
    content["config"]["train"]["lr"] = 0.5
    content["config"]["adapter"] = {"name": "frozen", "head_lr_ratio": 1.0, "reuse_features": True}
    write_record(content)
    loaded = resolve(RunOptions(resume="some", overrides=["train.workers=1"]))
    assert loaded.recipe.train.lr == 0.5
    assert loaded.recipe.adapter.name == "frozen"
    assert loaded.recipe.train.workers == 1


def test_a_record_of_a_recipe_that_is_gone() -> None:
    write_record(record(recipe={"name": "gone", "origin": "packaged", "hash": ""}))
    with pytest.raises(ConfigError, match="There is no recipe gone"):
        resolve(RunOptions(resume="some"))
    write_record(record(recipe={"name": "gone", "origin": "was/gone.py", "hash": ""}))
    with pytest.raises(ConfigError, match=r"There is no recipe file was/gone.py"):
        resolve(RunOptions(resume="some"))
