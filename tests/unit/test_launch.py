"""What the launcher was told, read from its command line, and what is refused before anything is loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from finetune.errors import ConfigError, LaunchError
from finetune.launch import make_accelerator, told_processes

pytestmark = pytest.mark.unit


def launched_by(monkeypatch: pytest.MonkeyPatch, *commands: str) -> None:
    """The command lines of this process's ancestors, nearest first."""
    parents = [SimpleNamespace(cmdline=lambda command=command: command.split()) for command in commands]
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=lambda: parents))


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("/v/bin/python /v/bin/accelerate launch --num_processes 2 finetune/run.py --recipe r", 2),
        ("/v/bin/python /v/bin/accelerate launch --num_processes=4 finetune/run.py", 4),
        ("python accelerate-launch --cpu --num-processes 3 finetune/run.py", 3),
        ("accelerate launch --num-processes=8 -m finetune.run", 8),
        ("python -m accelerate.commands.launch --num_processes 2 finetune/run.py", 2),
        ("python -m accelerate.commands.accelerate_cli launch --num_processes 2 finetune/run.py", 2),
        ("/v/bin/python /v/bin/accelerate launch finetune/run.py --recipe r", None),
        ("accelerate launch --num_processes", None),
        ("accelerate launch --num_processes two finetune/run.py", None),
        ("bash run.sh --num_processes 2", None),
        ("vim accelerate.txt --num_processes 2", None),
        ("", None),
    ],
)
def test_the_number_is_read_from_the_launchers_command_line(
    monkeypatch: pytest.MonkeyPatch, command: str, told: int | None
) -> None:
    launched_by(monkeypatch, command)
    assert told_processes() == told


def test_a_launcher_may_stand_one_process_further_up_but_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = "accelerate launch --num_processes 2 finetune/run.py"
    launched_by(monkeypatch, "python worker", launcher)
    assert told_processes() == 2
    launched_by(monkeypatch, "bash", "tmux", launcher)
    assert told_processes() is None


def test_a_process_table_that_can_not_be_read_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied() -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parents=denied))
    assert told_processes() is None


def test_fewer_processes_than_told_are_refused_with_the_line_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    launched_by(monkeypatch, "accelerate launch --cpu --num_processes 2 finetune/run.py")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(LaunchError, match="told --num_processes 2, but it started 1 process:") as caught:
        make_accelerator("fp32", [])
    assert "--multi_gpu --num_processes 2" in caught.value.fix
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(("tracker", "word"), [("tensorbord", "no tracker"), ("aim", "not installed")])
def test_a_tracker_that_would_silently_log_nothing_is_refused(tracker: str, word: str) -> None:
    with pytest.raises(ConfigError, match=f"train.trackers={tracker} is {word}") as caught:
        make_accelerator("fp32", ["tensorboard", tracker])
    assert caught.value.fix
