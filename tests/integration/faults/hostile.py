"""Artefacts made to run code, to read or write elsewhere, or to fill the disk: refused before any of it."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
from pathlib import Path

from finetune.cli import main
from finetune.errors import FinetuneError
from tests.integration.faults import stores
from tests.integration.faults.artefacts import CANARY, KINDS
from tests.integration.faults.audit import Watch
from tests.integration.faults.records import Outcome, Records


def run(records: Records, total: int, work: Path) -> None:
    real, watch = stores.real_checkpoints(work), Watch()
    _warm_up(work / "hostile", real)
    records.run("hostile", total, lambda number: _case(number, records.seed, real, work / "hostile", watch))


def _warm_up(folder: Path, real: Path) -> None:
    """Import what the cases need, so that imports' own reading is not taken for theirs."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        main(["data", "check", str(real.parent / "reviews.csv")])


def _case(number: int, seed: int, real: Path, folder: Path, watch: Watch) -> Outcome:
    rng = random.Random(f"hostile {seed} {number}")
    name = list(KINDS)[number % len(KINDS)]
    # Around it stand a file that a traversal would reach, and the place of the canary.
    shutil.rmtree(folder, ignore_errors=True)
    inner = folder / "a" / "b"
    inner.mkdir(parents=True)
    (folder / "secret.json").write_text('{"secret": 1}')
    act = KINDS[name](inner, folder, real, rng)
    before = {path for path in folder.rglob("*") if not path.is_relative_to(inner)}
    out, err = io.StringIO(), io.StringIO()
    refused = True
    cwd = os.getcwd()
    try:
        os.chdir(inner)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), watch.over(inner) as seen:
            try:
                refused = act() != 0
            except FinetuneError as error:
                err.write(str(error))
    except BaseException as error:
        return Outcome(name, f"{name}: {type(error).__name__}: {str(error)[:300]}")
    finally:
        os.chdir(cwd)
    outside = {path for path in folder.rglob("*") if not path.is_relative_to(inner)} - before
    if (folder / CANARY).exists() or outside or seen:
        return Outcome(name, f"{name}: {seen} {sorted(map(str, outside))}")
    if "Traceback" in err.getvalue():
        return Outcome(name, f"{name}: {err.getvalue()[-500:]}")
    return Outcome("refused" if refused else f"harmless: {name}")
