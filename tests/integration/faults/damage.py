"""Each file of a real checkpoint deleted, emptied, cut, extended, flipped or swapped: named or passed over, aloud."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from finetune.errors import CheckpointError
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records

FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")
WAYS = ("deleted", "emptied", "truncated", "extended", "flipped", "swapped", "zeroed", "repeated", "folder", "link")


def run(records: Records, total: int, work: Path) -> None:
    """Damage file after file of the newest of three checkpoints, or of the only one."""
    real = stores.real_checkpoints(work)
    records.run("damage", total, lambda number: _case(number, records.seed, real, work / "damage"))


def _case(number: int, seed: int, real: Path, folder: Path) -> Outcome:
    rng = random.Random(f"damage {seed} {number}")
    # In turn, so that even a small number of cases meets each file in each way.
    name, way = FILES[number % len(FILES)], WAYS[number // len(FILES) % len(WAYS)]
    alone = rng.random() < 0.4
    stores.copy_of(real, folder, [3] if alone else [1, 2, 3])
    path = folder / "update_00000003" / name
    before = path.read_bytes()
    _damage(path, way, real / "update_00000002" / name, rng)
    what = f"{name} {way}, {'alone' if alone else 'with two earlier ones'}"
    notes: list[str] = []
    try:
        found = stores.read(folder, notes)
    except CheckpointError as error:
        if not alone:
            return Outcome("refused", f"{what}: refused though an earlier one is whole: {error}")
        return Outcome("error that names the file", "" if _named(str(error)) else f"{what}: names no file: {error}")
    if found is None:
        return Outcome("none", f"{what}: no checkpoint is seen")
    state, progress, _ = found
    if progress.update == 3 and _harmless(path, before) and stores.same(state, real, 3):
        return Outcome("white space of the manifest: nothing to notice")
    if alone or progress.update != 2 or len(notes) != 1 or not _named(notes[0]):
        return Outcome("silent", f"{what}: took update {progress.update}, said {notes}")
    return Outcome("logged fall-back", "" if stores.same(state, real, 2) else f"{what}: other bits")


def _named(message: str) -> bool:
    return any(f"update_00000003/{name}" in message for name in FILES)


def _harmless(path: Path, before: bytes) -> bool:
    """A manifest is no part of itself; what leaves its content as it was is no damage."""
    try:
        return path.name == "manifest.json" and bool(json.loads(path.read_bytes()) == json.loads(before))
    except (OSError, ValueError):
        return False


def _damage(path: Path, way: str, other: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if way in ("deleted", "folder", "link"):
        path.unlink()
        if way == "folder":
            path.mkdir()
        if way == "link":
            path.symlink_to(rng.choice(["nowhere", path.name, "/dev/null"]))
        return
    if way == "swapped":
        shutil.copyfile(other, path)
        return
    if way == "emptied":
        content = bytearray()
    elif way == "truncated":
        del content[at:]
    elif way == "extended":
        content += rng.randbytes(rng.choice([1, 8, 4096]))
    elif way == "flipped":
        content[at] ^= 1 << rng.randrange(8)
    elif way == "zeroed":
        content[at : at + 4096] = bytes(len(content[at : at + 4096]))
        content[0] = 0  # a run of zeros may have been there before
    else:
        content[at:at] = content[max(0, at - 512) : at] or b"\0"
    path.write_bytes(content)
