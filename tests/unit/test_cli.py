"""The command line: flags that are frozen, help that is quick and teaches, errors that are one message."""

from __future__ import annotations

import argparse
import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetune.cli import command_parser, launch_parser, main
from finetune.errors import DataError, TrainingError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
# The launch line's flags are an interface: scripts of users and job files of clusters hold them.
LAUNCH_FLAGS = ["--recipe", "--set", "--data", "--adapter", "--seed", "--output", "--resume"]
HEAVY = {"torch", "transformers", "datasets", "numpy", "pydantic", "sklearn", "pyarrow", "accelerate", "matplotlib"}
COMMANDS = [
    "list", "show", "cp", "diff", "plan", "run", "predict", "merge", "bench", "bench list", "bench plan",
    "bench run", "bench show", "bench check", "bench speed", "compare", "slices", "calibrate", "risk-coverage",
    "replay", "verify", "verify resume", "data", "data check", "data leaks", "data card", "data list", "cache",
    "cache ls", "cache verify", "cache clear",
]  # fmt: skip


def flags(parser: argparse.ArgumentParser) -> list[str]:
    actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    return [flag for action in actions for flag in action.option_strings]


def subparser(parser: argparse.ArgumentParser, *names: str) -> argparse.ArgumentParser:
    for name in names:
        (choices,) = [a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
        parser = choices[name]
    return parser


def test_the_flags_of_the_launch_line_are_frozen() -> None:
    assert flags(launch_parser()) == LAUNCH_FLAGS


def test_finetune_run_takes_the_recipe_by_position_and_the_same_flags() -> None:
    parser = subparser(command_parser(), "run")
    assert flags(parser) == LAUNCH_FLAGS[1:]
    assert [action.dest for action in parser._actions if not action.option_strings] == ["recipe"]


@pytest.mark.parametrize("name", ["plan", "show"])
def test_plan_and_show_take_the_flags_that_change_settings(name: str) -> None:
    assert flags(subparser(command_parser(), name)) == ["--set", "--data", "--adapter", "--seed"]


def test_flags_are_not_abbreviated() -> None:
    for argv in (["run", "bert_cls", "--out", "x"], ["run", "bert_cls", "--res", "latest"]):
        with pytest.raises(SystemExit, match="2"):
            main(argv)


def test_the_commands_are_these() -> None:
    def names(parser: argparse.ArgumentParser, before: str = "") -> list[str]:
        found = []
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, inner in action.choices.items():
                    found += [before + name, *names(inner, f"{before}{name} ")]
        return found

    assert names(command_parser()) == COMMANDS


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_has_an_example_and_says_what_each_flag_does(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert f"  finetune {command}".rstrip() in text.partition("usage:")[2].partition("\n")[2]
    assert all(len(line) <= 120 for line in text.splitlines())
    for action in subparser(command_parser(), *command.split())._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), f"{command}: {action.dest}"


def test_the_launch_lines_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"], launched=True)
    assert "accelerate launch finetune/run.py --recipe bert_cls --data reviews.csv" in capsys.readouterr().out


def fresh_process(*argv: str) -> tuple[set[str], float]:
    """Top-level modules that a new process imported for a command line, and its seconds (the best of three)."""
    program = (
        "import sys\nfrom finetune.cli import main\ntry:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('MODULES', *sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    seconds = []
    for _ in range(3):
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", program, *argv], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        )
        seconds.append(time.monotonic() - started)
        if seconds[-1] < 0.4:
            break
    return set(done.stdout.rpartition("MODULES")[2].split()), min(seconds)


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["data", "check", "--help"], ["--version"], ["list"]])
def test_help_is_quick_because_it_imports_nothing_heavy(argv: list[str]) -> None:
    modules, seconds = fresh_process(*argv)
    assert "finetune" in modules
    assert modules & HEAVY == set()
    assert seconds < 0.5


def called(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr("finetune.commands.recipes._list", fail)
    return main(["list"])


def test_an_error_is_one_message_with_its_fix_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert called(monkeypatch, DataError("a.csv, line 3: no.", "Mend it.")) == 2
    assert capsys.readouterr() == ("", "finetune: DataError: a.csv, line 3: no.\n  Mend it.\n")
    assert called(monkeypatch, TrainingError("The loss is nan.")) == 1
    assert capsys.readouterr().err == "finetune: TrainingError: The loss is nan.\n"


def test_of_many_processes_one_speaks_and_all_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert called(monkeypatch, DataError("a.csv: no.")) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.ENAMETOOLONG]
)
def test_what_the_system_refuses_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    assert called(monkeypatch, OSError(number, "refused", "some/file")) == 2
    assert re.fullmatch(r"finetune: refused: some/file\n  \S.*\.\n", capsys.readouterr().err)


def test_a_mistake_of_the_program_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (KeyError("x"), OSError(errno.EBADF, "bad handle"), OSError("no number")):
        with pytest.raises(type(error)):
            called(monkeypatch, error)


def test_an_interrupt_before_training_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "finetune: interrupted\n"


def test_a_closed_pipe_is_no_error() -> None:
    program = "import sys; from finetune.cli import main; sys.exit(main(['list']))"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=60
        )
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_running_as_a_file_shadows_no_other_package() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "finetune" / "run.py"), "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "--recipe" in done.stdout
