"""Recipe files: what a broken one is told, what the hash covers, and where copies come from."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune import __version__
from finetune.cli import main
from finetune.errors import ConfigError
from finetune.recipe import apply_resolved, load_recipe, override
from finetune.recipe_files import copied_from, recipe_names, recipe_path, recipe_summary, recipes_folder, source_hash

pytestmark = pytest.mark.unit

Write = Callable[..., Path]
DERIVED = """\
\"\"\"Mine. One line.

More of it.
\"\"\"
from finetune.recipe import base

def config():
    c = base("bert_cls").config()
    c.train.lr = 2e-5
    return c
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes, name: str = "mine.py") -> Path:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return Path("./" + name) if len(path.parts) == 1 else path

    return write


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ndef config(:\n    pass\n", ["line 2", "invalid syntax", "def config(:"]),
        ("def config():\n    x = (1,\n", ["line 2", "never closed"]),
        ("def config():\n\tif 1:\n        return 2\n", ["line 3", "tabs"]),
        ("x = 1\0\n", ["null byte"]),
        (b"x = '\xe9'\n", ["not UTF-8"]),
        ("", ["defines no config()"]),
        ("config = 3\n", ["defines no config()"]),
        ("def config():\n    return {'train': 1}\n", ["config() returned dict, not a finetune.Recipe"]),
        ("def config():\n    pass\n", ["config() returned NoneType"]),
        ("def config(seed):\n    return seed\n", ["TypeError", "seed"]),
        ("import no_such_package\n", ["not installed", "no_such_package"]),
        ("from finetune.config import Nope\n", ["Nope"]),
        ("\n\nx = undefined\n", ["line 3", "NameError", "undefined"]),
        ("x = 1\nx.y\n", ["line 2", "AttributeError"]),
        ("x = 1 / 0\n", ["line 1", "ZeroDivisionError"]),
        ("\nx = {}['lr']\n", ["line 2", "KeyError", "lr"]),
        ("\nopen('no_such_file')\n", ["line 2", "no_such_file"]),
        ("def config():\n    return undefined\n", ["line 2", "NameError", "undefined"]),
        ("def config():\n    return [][0]\n", ["line 2", "IndexError"]),
        (DERIVED.replace("c.train.lr = 2e-5", "c.train.lrr = 1"), ["line 9", "lrr"]),
        (DERIVED.replace("c.train.lr = 2e-5", "c.train.lr = c.train.lrr"), ["line 9", "lrr"]),
        (DERIVED.replace("2e-5", "-1.0"), ["line 9", "greater than 0"]),
        (DERIVED.replace('"bert_cls"', '"bert_cl"'), ["no recipe bert_cl"]),
        ("from finetune.recipe import base\nb = base('./mine.py')\n", ["derives from itself"]),
        ("from finetune.recipe import Recipe\ndef config():\n    return Recipe()\n", ["line 3", "model", "required"]),
    ],
    ids=lambda value: re.sub(r"\W+", "_", str(value))[:40],
)
def test_a_broken_recipe_is_named_with_its_line_and_nothing_is_raised_past_the_message(
    write: Write, text: str | bytes, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(text)
    assert main(["show", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("finetune: ConfigError: ")
    assert "Traceback" not in printed.err
    for word in [*words, *(["mine.py"] if "bert_cl'" not in words[0] and "no recipe" not in words[0] else [])]:
        assert word in printed.err


def test_a_recipe_that_is_not_there(write: Write) -> None:
    for name, problem, fix in (
        ("bert_cl", "There is no recipe bert_cl.", "Did you mean bert_cls?"),
        ("zzzzzz", "There is no recipe zzzzzz.", "`finetune list` shows them all."),
        ("mine.py", "There is no recipe file mine.py.", "the path of a .py file"),
        ("some/mine", "There is no recipe file some/mine.", "the path of a .py file"),
    ):
        with pytest.raises(ConfigError) as caught:
            recipe_path(name)
        assert caught.value.problem == problem
        assert fix in caught.value.fix
    Path("folder.py").mkdir()
    with pytest.raises(ConfigError, match="no recipe file"):
        recipe_path("folder.py")


def test_a_bare_file_name_is_a_path(write: Write) -> None:
    write(DERIVED)
    assert load_recipe("mine.py").recipe.train.lr == 2e-5


def test_a_byte_order_mark_is_no_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("\ufeff" + DERIVED)
    assert load_recipe(str(path)).summary == "Mine. One line."
    assert main(["cp", str(path), "copy.py"]) == 0
    assert load_recipe("copy.py").sha256 == load_recipe(str(path)).sha256


def test_origin_summary_and_hash_of_packaged_and_own(write: Write) -> None:
    packaged, own = load_recipe("bert_cls"), load_recipe(str(write(DERIVED)))
    assert (packaged.name, packaged.origin) == ("bert_cls", "packaged")
    assert (own.name, own.origin) == ("mine", "mine.py")
    assert own.summary == "Mine. One line."
    assert re.fullmatch("[0-9a-f]{64}", own.sha256)
    assert own.sha256 != packaged.sha256
    assert own.recipe.train.lr == 2e-5 != packaged.recipe.train.lr


def test_every_packaged_recipe_loads_and_has_a_summary() -> None:
    assert "bert_cls" in recipe_names()
    for name in recipe_names():
        loaded = load_recipe(name)
        assert loaded.summary.endswith(".")
        assert loaded.resolved()["train"]["seed"] == 0


def test_every_packaged_recipe_is_short_and_says_what_to_expect() -> None:
    """Its line, how long it takes on what, and the metric that comes out."""
    for name in recipe_names():
        source = recipe_path(name).read_text("utf-8")
        said = ast.get_docstring(ast.parse(source)) or ""
        assert len(source.splitlines()) <= 105, name
        line = rf"^ +accelerate launch finetune/run\.py --recipe {name}\b"
        for part in (line, r"^Time +\S.*\b(s|seconds|min)\b", r"^Expected +\S.*\d", r"\bcores?\b"):
            assert re.search(part, said, re.MULTILINE), (name, part)


def test_the_hash_is_of_the_source_alone_and_of_every_base(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    packaged = write("def config(): ...\n", "packaged/first.py").parent.absolute()
    monkeypatch.setattr("finetune.recipe_files.recipes_folder", lambda: packaged)
    second = write("from finetune.recipe import base\ndef config(): return base('first').config()\n", "second.py")
    third = write("import finetune.recipe\ndef config(): return finetune.recipe.base('./second.py').config()\n", "c.py")
    before = [source_hash(path) for path in (second, third)]
    assert [source_hash(path) for path in (second, third)] == before
    # Neither where it stands nor where it was copied from belongs to what it does.
    other = write("# Copied from x, finetune 1, sha256 0\r\n" + second.read_text().replace("\n", "\r\n"), "other.py")
    assert source_hash(other) == before[0]
    (packaged / "first.py").write_text("def config(): return 1\n")
    after = [source_hash(path) for path in (second, third)]
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_base_that_the_hash_cannot_cover_is_refused(write: Write) -> None:
    path = write(
        DERIVED.replace("def config():", 'NAME = "bert_cls"\n\ndef config():').replace('base("bert_cls")', "base(NAME)")
    )
    with pytest.raises(ConfigError, match=r"mine.py, line 10: base\(\) needs"):
        load_recipe(str(path))


def test_bases_that_name_each_other_are_hashed_once(write: Write) -> None:
    text = "from finetune.recipe import base\ndef config(): return base('./{}.py').config()\n"
    one, two = write(text.format("two"), "one.py"), write(text.format("one"), "two.py")
    assert source_hash(one) != source_hash(two)


def test_a_copy_runs_by_path_says_where_it_is_from_and_has_the_same_hash(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cp", "bert_cls", "task.py"]) == 0
    assert "finetune run ./task.py" in capsys.readouterr().out
    origin, copy = load_recipe("bert_cls"), load_recipe("task.py")
    assert copy.sha256 == origin.sha256
    assert copy.resolved() == origin.resolved()
    assert Path("task.py").read_text().splitlines()[0] == (
        f"# Copied from bert_cls, finetune {__version__}, sha256 {origin.sha256}"
    )
    assert copied_from(Path("task.py")) == ("bert_cls", __version__, True)
    text = Path("task.py").read_text().replace(f"sha256 {origin.sha256}", f"sha256 {'0' * 64}")
    assert copied_from(write(text)) == ("bert_cls", __version__, False)
    assert copied_from(recipe_path("bert_cls")) is None


def test_a_copy_into_a_folder_keeps_the_name_and_nothing_is_overwritten(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    assert main(["cp", "bert_cls", "folder"]) == 0
    before = Path("folder/bert_cls.py").read_bytes()
    Path("folder/bert_cls.py").write_bytes(before + b"# mine\n")
    for destination in ("folder", "folder/", "folder/bert_cls.py"):
        assert main(["cp", "bert_cls", destination]) == 2
        assert "exists already" in capsys.readouterr().err
    assert Path("folder/bert_cls.py").read_bytes() == before + b"# mine\n"


@pytest.mark.parametrize(
    ("destination", "word"),
    [
        ("missing/x.py", "mkdir -p missing"),
        ("missing/", "mkdir -p missing"),
        ("x.txt", "x.txt.py"),
        ("task", "task.py"),
        ("y" * 300 + ".py", "name too long"),
    ],
)
def test_a_place_that_takes_no_copy(
    write: Write, destination: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cp", "bert_cls", destination]) == 2
    assert word in capsys.readouterr().err
    assert list(Path().iterdir()) == []


def test_a_broken_recipe_is_not_copied(write: Write) -> None:
    path = write("def config(:\n")
    assert main(["cp", str(path), "copy.py"]) == 2
    assert not Path("copy.py").exists()


def test_diff_shows_what_was_edited_and_nothing_else(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    main(["cp", "bert_cls", "task.py"])
    capsys.readouterr()
    assert main(["diff", "task.py"]) == 0
    assert capsys.readouterr().out == ""
    edited = re.sub(r"epochs=[0-9.]+", "epochs=77", Path("task.py").read_text())
    write(edited, "task.py")
    assert main(["diff", "task.py"]) == 0
    changed = [line for line in capsys.readouterr().out.splitlines() if re.match(r"[-+][^-+]", line)]
    assert len(changed) == 2
    assert "epochs=77" not in changed[0]
    assert "epochs=77" in changed[1]


def test_diff_says_when_the_origin_itself_has_changed(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    main(["cp", "bert_cls", "task.py"])
    text = Path("task.py").read_text()
    write(re.sub("sha256 [0-9a-f]{64}", f"sha256 {'0' * 64}", text, count=1), "task.py")
    assert main(["diff", "task.py"]) == 0
    assert "bert_cls itself has changed" in capsys.readouterr().err


def test_diff_needs_to_know_the_origin(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(write(DERIVED))]) == 2
    assert "does not say where it was copied from" in capsys.readouterr().err
    # A copy of one's own recipe names a file that this command can't know.
    assert main(["cp", "./mine.py", "copy.py"]) == 0
    capsys.readouterr()
    assert main(["diff", "copy.py"]) == 2
    message = capsys.readouterr().err
    assert "copied from mine" in message
    assert "packaged" in message


def test_summaries_are_read_without_importing(write: Write) -> None:
    path = write('"""First line.\n\nRest."""\nraise RuntimeError("imported")\n')
    assert recipe_summary(path) == "First line."
    assert recipe_summary(write("x = 1\n")) == ""


def test_the_packaged_recipes_stand_in_a_folder_of_their_own() -> None:
    assert (recipes_folder() / "bert_cls.py").is_file()


def test_overrides_apply_in_order_and_the_last_one_counts() -> None:
    loaded = load_recipe("bert_cls")
    override(loaded, ["train.lr=1e-3", "adapter=frozen", "train.lr=2e-3"])
    assert loaded.recipe.train.lr == 2e-3
    assert loaded.recipe.adapter.name == "frozen"
    assert loaded.resolved()["adapter"] == {"name": "frozen", "head_lr_ratio": 1.0, "reuse_features": True}


def test_a_records_settings_come_back_whole() -> None:
    changed = load_recipe("bert_cls")
    override(changed, ["train.lr=1e-3", "adapter=frozen", "train.trackers=tensorboard", "train.max_updates=4"])
    again = load_recipe("bert_cls")
    apply_resolved(again, changed.resolved())
    assert again.resolved() == changed.resolved()
