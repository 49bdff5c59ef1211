"""`finetune` commands as forks of one interpreter that has imported everything: whole processes, seconds sooner.

    done = forks().run(["run", "bert_cls"], folder, os.environ)
    killed = forks().start(["run", "bert_cls"], folder, os.environ)  # .pid, .running(), .wait()
    both = forks().start(["run", "bert_cls"], folder, os.environ, world=2)  # .pids, .running(), .wait_all()

A command imports PyTorch and transformers for about five seconds before it does anything, and there are a hundred in
the tests. Nothing is computed before a fork, and each leaves by the interpreter's own exit. What a launcher does, and
what Python does before `main`, is tested by launch lines, which are processes from their first instruction.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
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
    # A fork that ends would otherwise visit, and so copy, everything that was imported: nearly three seconds.
    gc.collect()
    gc.freeze()


@functools.cache
def forks() -> Forks:
    """This process's server: it ends when this process does."""
    return Forks()


class Command:
    """A command that was started.

    Attributes:
        pids: its processes by rank; signals go there.
    """

    def __init__(self, server: Forks, arguments: Sequence[str], folder: Path) -> None:
        self.pids = [int(word) for word in server.line().split()]
        self._server, self._arguments, self._folder = server, arguments, folder

    @property
    def pid(self) -> int:
        """The first process, of most commands the only one."""
        return self.pids[0]

    def running(self) -> bool:
        """Whether a process of it is still there and is no zombie."""
        for pid in self.pids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    return True
        return False

    def wait(self, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        """The status of its first process, as `subprocess` has it, and what it wrote.

        Raises:
            TimeoutExpired: it was not done in time, and killed.
        """
        return self.wait_all(timeout_s)[0]

    def wait_all(self, timeout_s: float = 600.0) -> list[subprocess.CompletedProcess[str]]:
        """The same of all its processes, by rank."""
        if not self._server.answers(timeout_s):
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._server.line()
            raise subprocess.TimeoutExpired(list(self._arguments), timeout_s)
        statuses = [int(word) for word in self._server.line().split()]
        return [
            subprocess.CompletedProcess(list(self._arguments), status, *self._written(rank))
            for rank, status in enumerate(statuses)
        ]

    def _written(self, rank: int) -> list[str]:
        names = (f"out-{rank}", f"error-{rank}")
        return [(self._folder / name).read_text("utf-8", errors="replace") for name in names]


class Forks:
    """The server of forks; one command at a time.

    Args:
        modules: also imported before the forks.
    """

    def __init__(self, modules: Sequence[str] = ()) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", *modules],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip
        self._written = tempfile.TemporaryDirectory(prefix="finetune-forks-")

    def start(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        world: int = 1,
        module: str = "finetune.cli",
    ) -> Command:
        """Begin `finetune ARGUMENTS` in a folder; wait for it before the next one.

        Args:
            world: processes, which find each other as those of a launch line do.
            module: whose `main(arguments)` is called.
        """
        written = Path(self._written.name)
        request = {
            "world": world,
            "module": module,
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
    for module in sys.argv[1:]:
        importlib.import_module(module)
    import_all()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        port, pids = _free_port(), []
        for rank in range(request["world"]):
            pids.append(os.fork())
            if not pids[-1]:
                answers.close()
                command(request, rank, port)
        answers.write(f"{' '.join(map(str, pids))}\n")
        answers.flush()
        # As they end: one that is gone must not stay a zombie while the others go on.
        ended = dict(os.wait() for _ in pids)
        answers.write(f"{' '.join(str(os.waitstatus_to_exitcode(ended[pid])) for pid in pids)}\n")
        answers.flush()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def command(request: Mapping[str, Any], rank: int, port: int) -> None:
    """In the fork: become the command."""
    main = importlib.import_module(request["module"]).main
    for name, number in ((f"out-{rank}", 1), (f"error-{rank}", 2)):
        file = os.open(Path(request["written"]) / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    if (world := request["world"]) > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        os.environ["ACCELERATE_USE_CPU"] = "true"
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
