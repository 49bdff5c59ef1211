"""A process dies before, after or in the middle of each file system operation of a save: a whole checkpoint is there.

And the disk refuses each of them, once or for good: no checkpoint is lost, and the message is one.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

from finetune.checkpoint import Checkpoints
from finetune.errors import CheckpointError
from tests.integration.faults import operations, stores
from tests.integration.faults.records import Outcome, Records

# What is in the folder when update 3 is saved: two older ones that rotation takes, or a torn one in its place.
SCENES = ("rotates two", "replaces a damaged one", "first of a run")
WAYS = ("before", "after", "torn")
REFUSALS = (errno.ENOSPC, errno.EROFS, errno.EIO, errno.EDQUOT)
DIED = 77


def run(records: Records, work: Path, every: int = 1) -> None:
    """Every operation of every scene, or each `every`-th; what there are is counted first, so the matrix is whole."""
    real, folder = stores.real_checkpoints(work), work / "crash"
    counts = [_operations(real, folder, scene) for scene in SCENES]
    points = [
        (scene, at, way)
        for scene, names in zip(SCENES, counts, strict=True)
        for at, name in enumerate(names)
        for way in WAYS
        if way != "torn" or name in ("fsync", "save_file")
    ]
    points = points[::every]
    records.run("crash", len(points), lambda number: _crash(*points[number], real, folder), counted="points")
    refusals = [
        (scene, at, code, lasting)
        for scene, names in zip(SCENES, counts, strict=True)
        for at in range(len(names))
        for code in REFUSALS
        for lasting in (False, True)
    ]
    refusals = refusals[::every]
    records.run("refused writes", len(refusals), lambda number: _refuse(*refusals[number], real, folder))


def _save(real: Path, folder: Path) -> None:
    state, progress, identity = Checkpoints(real, 9, _silent).read(3)
    progress.best_update = 3
    Checkpoints(folder, 1, _silent).save(state, progress, identity)


def _scene(real: Path, folder: Path, scene: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if scene == "rotates two":
        stores.copy_of(real, folder, [1, 2])
    elif scene == "replaces a damaged one":
        stores.copy_of(real, folder, [2, 3])
        (folder / "update_00000003" / "state.json").write_bytes(b"")


def _operations(real: Path, folder: Path, scene: str) -> list[str]:
    _scene(real, folder, scene)
    names: list[str] = []
    with operations.watched(lambda number, name, first: names.append(name), _nothing):
        _save(real, folder)
    return names


def _crash(scene: str, at: int, way: str, real: Path, folder: Path) -> Outcome:
    _scene(real, folder, scene)
    what = f"{scene}: died {way} operation {at}"
    child = os.fork()
    if child == 0:
        try:
            # Written bytes that were not synced may be lost with the power: of such a file, half is left.
            def before(number: int, name: str, first: Any) -> None:
                if number == at and (way == "before" or (way == "torn" and name == "fsync")):
                    if way == "torn" and stat.S_ISREG(os.fstat(first).st_mode):
                        os.truncate(os.readlink(f"/proc/self/fd/{first}"), os.fstat(first).st_size // 2)
                    os._exit(DIED)

            def after(number: int, name: str, first: Any) -> None:
                if number == at and way != "before":
                    for path in folder.glob(".writing-*/*.safetensors") if way == "torn" else ():
                        os.truncate(path, path.stat().st_size // 2)
                    os._exit(DIED)

            with operations.watched(before, after):
                _save(real, folder)
        finally:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != DIED:
        return Outcome("not there", f"{what}: the child ended with {status}")
    return _checked(what, scene, "a whole checkpoint", real, folder)


def _refuse(scene: str, at: int, code: int, lasting: bool, real: Path, folder: Path) -> Outcome:
    _scene(real, folder, scene)
    what = f"{scene}: {errno.errorcode[code]} at operation {at}{' and all later ones' if lasting else ''}"

    def refuse(number: int, name: str, first: Any) -> None:
        if number == at or (lasting and number > at):
            raise OSError(code, os.strerror(code))

    kind = "went on: only litter could not be removed"
    try:
        with operations.watched(refuse, _nothing):
            _save(real, folder)
    except CheckpointError as error:
        kind = "one message"
        if "--resume" not in error.fix or os.strerror(code) not in error.problem:
            return Outcome(kind, f"{what}: unclear: {error}")
    except OSError as error:
        return Outcome("traceback", f"{what}: {error!r} instead of a CheckpointError")
    return _checked(what, scene, kind, real, folder)


def _checked(what: str, scene: str, kind: str, real: Path, folder: Path) -> Outcome:
    """A whole checkpoint is found, with its bits; and saving again works and clears away what was left."""
    try:
        found = stores.read(folder)
        if found is None and scene != "first of a run":
            return Outcome(kind, f"{what}: no checkpoint is left")
        if found is not None and not stores.same(found[0], real, found[1].update):
            return Outcome(kind, f"{what}: update {found[1].update} has other bits")
        _save(real, folder)
        left = sorted(path.name for path in folder.iterdir())
    except CheckpointError as error:
        return Outcome(kind, f"{what}: {error}")
    return Outcome(kind, "" if left == ["update_00000003"] else f"{what}: afterwards there are {left}")


def _nothing(number: int, name: str, first: Any) -> None:
    pass


def _silent(note: str) -> None:
    pass
