"""`finetune` commands as forks of one interpreter that has imported everything: whole processes, seconds sooner.

    done = forks().run(["run", "bert_cls"], folder, os.environ)
    killed = forks().start(["run", "bert_cls"], folder, os.environ)  # .pid, .running(), .wait()

A command imports PyTorch and transformers for about five seconds before it does anything, and there are a hundred in
the tests. Nothing is computed before a fork, and each leaves by the interpreter's own exit. What a launcher does, and
what Python does before `main`, is tested by launch lines, which are processes from their first instruction.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Imported once, before the forks.
HEAVY = (
    "datasets", "peft", "sklearn.linear_model", "finetune.experiment", "finetune.trainer", "finetune.cli",
    "finetune.evaluation.judge", "torch.distributed.checkpoint.state_dict", "torch.nn.parallel",
    *(f"transformers.models.{name}.modeling_{name}" for name in ("bert", "gpt2", "llama", "resnet")),
)  # fmt: skip


def import_all() -> None:
    """What runs of all recipes import; nothing of it starts a thread that a fork would miss."""
    from finetune.recipe import load_recipe
    from finetune.recipe_files import recipe_names

    for module in HEAVY:
        importlib.import_module(module)
    for name in recipe_names():
        load_recipe(name)


@functools.cache
def forks() -> Forks:
    """This process's server: it ends when this process does."""
    return Forks()


class Command:
    """A command that was started.

    Attributes:
        pid: the process; signals go there.
    """

    def __init__(self, server: Forks, arguments: Sequence[str], folder: Path) -> None:
        self.pid = int(server.line())
        self._server, self._arguments, self._folder = server, arguments, folder

    def running(self) -> bool:
        """Whether its process is still there and is no zombie."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def wait(self, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """Its status, as `subprocess` has it, and what it wrote.

        Raises:
            TimeoutExpired: it was not done in time, and killed.
        """
        if not self._server.answers(timeout_s):
            os.kill(self.pid, signal.SIGKILL)
            self._server.line()
            raise subprocess.TimeoutExpired(list(self._arguments), timeout_s)
        status = int(self._server.line())
        out, error = ((self._folder / name).read_text("utf-8", errors="replace") for name in ("out", "error"))
        return subprocess.CompletedProcess(list(self._arguments), status, out, error)


class Forks:
    """The server of forks; one command at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks"],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._written = tempfile.TemporaryDirectory(prefix="finetune-forks-")

    def start(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Command:
        """Begin `finetune ARGUMENTS` in a folder; wait for it before the next one."""
        written = Path(self._written.name)
        request = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environment": dict(environment),
            "written": str(written),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps(request)}\n".encode())
        return Command(self, arguments, written)

    def run(
        self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """`finetune ARGUMENTS` in a folder, to its end."""
        return self.start(arguments, folder, environment).wait()

    def answers(self, timeout_s: float) -> bool:
        """Whether the server says something in that time."""
        return bool(select.select([self._process.stdout], [], [], timeout_s)[0])

    def line(self) -> bytes:
        """The server's next word.

        Raises:
            RuntimeError: it is gone.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of forks left with {self._process.wait()}")
        return line


def serve() -> None:
    """Fork for each request on standard input, and say the process and, when it ended, its status."""
    import_all()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if not pid:
            answers.close()
            command(request)
        answers.write(f"{pid}\n")
        answers.flush()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        answers.write(f"{status}\n")
        answers.flush()


def command(request: Mapping[str, Any]) -> None:
    """In the fork: become the command."""
    from finetune.cli import main

    for name, number in (("out", 1), ("error", 2)):
        file = os.open(Path(request["written"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    try:
        os.chdir(request["folder"])
        status = main(request["arguments"])
    except SystemExit:
        raise
    except BaseException:
        # Here, and not where the server would meet it: from there the fork would go on with the server's work.
        traceback.print_exc()
        sys.exit(1)
    sys.exit(status)


if __name__ == "__main__":
    serve()
