"""One process, two, resumed and copied: each role of the matrix is a fork of one interpreter that imported everything.

Python and its libraries are imported once, nothing is computed before the forks, and each leaves by the interpreter's
own exit. The two processes of a role meet as those of a launch line do.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import os
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.recipe import load_recipe
from tests.forks import import_all
from tests.matrix.cases import UPDATES, Case, prepare


def make_trainer(recipe: str, settings: Sequence[str], folder: Path) -> Any:
    """A trainer whose run folder is `folder`, as `finetune run` makes it."""
    from accelerate import Accelerator

    from finetune.checkpoint import Checkpoints
    from finetune.experiment import build_trainer
    from finetune.history import History
    from finetune.recipe import override

    loaded = load_recipe(recipe)
    off = ["objective.baselines=false"] if Path(recipe).stem != "resnet_pretrain" else []
    override(loaded, [*settings, *off])
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    trainer = build_trainer(loaded, loaded.build(), accelerator)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.checkpoints = Checkpoints(folder / "checkpoints", loaded.recipe.train.keep_checkpoints, print)
    trainer.history = History(folder / "history.jsonl" if accelerator.is_main_process else None)
    return trainer


def train(recipe: str, settings: Sequence[str], folder: Path, resume: bool) -> None:
    """Fit, and leave the hash of the weights that the model ends with, as this process has them."""
    trainer = make_trainer(recipe, settings, folder)
    if any(len(rows) < trainer.settings.batch_size for rows in itertools.islice(trainer.plan.updates(), UPDATES)):
        raise ValueError(f"{recipe}: an update is short; take another train.seed or other rows")
    rank = trainer.accelerator.process_index
    trainer.fit(resume=resume)
    digest = hashlib.sha256()
    for name, tensor in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    (folder / f"weights-{rank}").write_text(digest.hexdigest())


@dataclass(frozen=True)
class Plan:
    """What is run.

    Attributes:
        stops: updates after which a run is stopped and resumed, for each case.
    """

    work: Path
    cases: Sequence[Case]
    stops: Callable[[Case], Sequence[int]]

    @property
    def data(self) -> Path:
        return self.work / "data"

    def settings(self, case: Case) -> list[str]:
        """A stop that is no evaluation needs a checkpoint of its own."""
        more = ["train.save_every_updates=1"] if len(self.stops(case)) > 1 else []
        return [*case.settings(self.data), *more]

    def whole(self, case: Case, world: int) -> Path:
        return self.work / case.name / f"{world}"

    def resumed(self, case: Case, world: int, stop: int) -> Path:
        return self.work / case.name / f"{world}-resumed-{stop}"

    def copied(self, case: Case) -> Path:
        return self.work / case.name / "copy"


def run_whole(plan: Plan, world: int) -> None:
    for case in plan.cases:
        with _named(plan.whole(case, world)) as folder:
            train(case.recipe, plan.settings(case), folder, resume=False)


def run_resumed(plan: Plan, world: int) -> None:
    """From a copy of what the whole run had written when it was at the stop."""
    from accelerate import PartialState

    for case in plan.cases:
        for stop in plan.stops(case):
            with _named(plan.resumed(case, world, stop)) as folder:
                whole = plan.whole(case, world)
                if PartialState(cpu=True).is_main_process:
                    folder.mkdir(parents=True)
                    shutil.copy(whole / "history.jsonl", folder)
                    for path in (whole / "checkpoints").iterdir():
                        if int(path.name.removeprefix("update_")) <= stop:
                            # Links: a checkpoint of all weights takes longer to copy than to train.
                            shutil.copytree(path, folder / "checkpoints" / path.name, copy_function=os.link)
                PartialState().wait_for_everyone()
                train(case.recipe, plan.settings(case), folder, resume=True)


def run_copies(plan: Plan, world: int) -> None:
    from finetune.cli import main

    for case in plan.cases:
        if case.copied:
            with _named(plan.copied(case)) as folder:
                folder.mkdir(parents=True)
                path = folder / f"{case.recipe}.py"
                if main(["cp", case.recipe, str(path)]):
                    raise RuntimeError(f"finetune cp {case.recipe} failed")
                train(str(path), plan.settings(case), folder, resume=False)


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[Path]:
    """An error belongs to its case; the others go on. (A partner that meets none waits, until the time is up.)"""
    began = time.monotonic()
    try:
        yield folder
    except Exception:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"error-{os.environ.get('RANK', '0')}.txt").write_text(traceback.format_exc())
        print(folder, traceback.format_exc(), file=sys.stderr)
    gc.collect()
    print(f"{folder}: {time.monotonic() - began:.1f} s", flush=True)


ROLES: dict[str, tuple[Callable[[Plan, int], None], int]] = {
    "whole-1": (run_whole, 1),
    "whole-2": (run_whole, 2),
    "resumed-1": (run_resumed, 1),
    "resumed-2": (run_resumed, 2),
    "copies": (run_copies, 1),
}


def run(plan: Plan, patience_s: float) -> None:
    """Every role in turn.

    Raises:
        RuntimeError: a process of a role did not exit with 0, or not in time; its log is part of the message.
    """
    import_all()
    # A fork must not find locks or threads of work that was done before it.
    fork_all("data", plan.work, lambda: prepare(plan.data, any(case.letters for case in plan.cases)), 1, patience_s)
    for role, (function, world) in ROLES.items():
        fork_all(role, plan.work, functools.partial(function, plan, world), world, patience_s)


def fork_all(role: str, work: Path, function: Callable[[], None], world: int, patience_s: float) -> None:
    """Call a function in `world` processes that find each other; what they print goes to `work`/role-rank.log.

    Raises:
        RuntimeError: one did not exit with 0, or not in time; the ends of the logs are part of the message.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = int(listener.getsockname()[1])
    began = time.monotonic()
    running = {_fork(work / f"{role}-{rank}.log", function, rank, world, port): rank for rank in range(world)}
    wrong = ""
    try:
        while running and not wrong:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                rank = running.pop(pid)
                code = os.waitstatus_to_exitcode(status)
                wrong = f"process {rank} of {world} exited with {code}" if code else ""
            elif time.monotonic() - began > patience_s:
                wrong = f"{patience_s:.0f} s were not enough"
            else:
                time.sleep(0.02)
    finally:
        for pid in running:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if wrong:
        logs = "".join(
            (work / f"{role}-{rank}.log").read_text("utf-8", errors="replace")[-3000:] for rank in range(world)
        )
        raise RuntimeError(f"{role}: {wrong}\n{logs}")


def _fork(log: Path, function: Callable[[], None], rank: int, world: int, port: int) -> int:
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()  # or the child would print it too
    pid = os.fork()
    if pid:
        return pid
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    if world > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    try:
        function()
        from accelerate import PartialState

        PartialState().destroy_process_group()
    except BaseException:
        # Here, and not in the caller's own except clauses: from there the fork would go on with the caller's work.
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)  # not os._exit: a process that aborts at its end is one of the faults looked for
