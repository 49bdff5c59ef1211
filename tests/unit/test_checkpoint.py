"""Checkpoints: whole or absent, whatever happens to their files or to the disk."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune import checkpoint
from finetune.checkpoint import Checkpoints, Progress
from finetune.errors import CheckpointError
from finetune.state import State, capture, restore

pytestmark = pytest.mark.unit

IDENTITY = {"recipe": "abc", "labels": ["no", "yes"], "settings": {"train.lr": 1e-4}}
FILES = ("manifest.json", "model.safetensors", "optimizer.safetensors", "state.json")


class Store:
    """Checkpoints of a tiny model, with what was said about them."""

    def __init__(self, folder: Path, keep: int = 9) -> None:
        self.said: list[str] = []
        self.checkpoints = Checkpoints(folder / "checkpoints", keep, self.said.append)

    def save(self, update: int, best: int | None = None) -> Path:
        torch.manual_seed(update)
        tensors = {"model": {"w": torch.randn(40)}, "optimizer": {"w|step": torch.tensor(float(update))}}
        progress = Progress(update, rows=8 * update, best_update=update if best is None else best, best_value=0.5)
        return self.checkpoints.save(State(tensors, {"aliases": {}}), progress, IDENTITY)

    def newest(self) -> int | None:
        found = self.checkpoints.newest()
        return None if found is None else found[1].update


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def small_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def test_what_is_saved_comes_back_to_the_bit(store: Store) -> None:
    store.save(3)
    state, progress, identity = store.checkpoints.read(3)
    torch.manual_seed(3)
    assert torch.equal(state.tensors["model"]["w"], torch.randn(40))
    assert state.tensors["optimizer"]["w|step"].item() == 3.0
    assert progress == Progress(3, rows=24, best_update=3, best_value=0.5)
    assert identity == IDENTITY
    assert sorted(path.name for path in store.checkpoints.path(3).iterdir()) == sorted(FILES)


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_model_and_optimizer_go_on_as_if_never_stopped(tmp_path: Path, kind: str) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = small_model()
        model[0].requires_grad_(False)
        groups = [{"params": model[2].parameters(), "peak_lr": 0.1}, {"params": model[1].parameters(), "peak_lr": 0.2}]
        if kind == "sgd":
            return model, torch.optim.SGD(groups, lr=0.1, momentum=0.9)
        return model, torch.optim.AdamW(groups, lr=0.1)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))
        model(inputs).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    whole, whole_optimizer = make()
    for seed in range(4):
        step(whole, whole_optimizer, seed)

    first, optimizer = make()
    for seed in range(2):
        step(first, optimizer, seed)
    checkpoints = Checkpoints(tmp_path, 1, print)
    checkpoints.save(capture(first, optimizer), Progress(2), IDENTITY)

    again, optimizer = make()
    with torch.no_grad():
        for value in again[2].parameters():
            value.fill_(9.0)
    restore(checkpoints.read(2)[0], again, optimizer)
    for seed in (2, 3):
        step(again, optimizer, seed)
    for (name, ours), theirs in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    assert [group["peak_lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_frozen_weights_are_not_stored_but_statistics_are() -> None:
    model = small_model()
    model[0].requires_grad_(False)
    stored = capture(model).tensors["model"]
    assert "0.weight" not in stored
    assert {"1.running_mean", "2.weight"} <= set(stored)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(4, 4, bias=False)
            self.outer = torch.nn.Linear(4, 4, bias=False)
            self.outer.weight = self.inner.weight

    model = Tied()
    checkpoints = Checkpoints(tmp_path, 1, print)
    checkpoints.save(capture(model), Progress(1), IDENTITY)
    assert len(checkpoints.read(1)[0].tensors["model"]) == 1
    other = Tied()
    restore(checkpoints.read(1)[0], other)
    assert torch.equal(other.inner.weight, model.inner.weight)
    assert other.outer.weight is other.inner.weight


def test_a_captured_state_is_a_copy() -> None:
    model = small_model()
    state = capture(model)
    before = state.tensors["model"]["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.add_(1)
    assert torch.equal(state.tensors["model"]["0.weight"], before)


def test_weights_that_the_model_lacks_are_refused() -> None:
    state = capture(small_model())
    state.tensors["model"]["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"weights that the model lacks: extra.weight"):
        restore(state, small_model())


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, [1, 1, 1, 1], [4, 1]), (2, [1, 2, 2, 2], [4, 3, 2]), (1, [1, 2, 3, 4], [4]), (9, [1, 1, 1, 1], [4, 3, 2, 1])],
)
def test_the_newest_and_the_best_stay(tmp_path: Path, keep: int, best: list[int], left: list[int]) -> None:
    store = Store(tmp_path, keep)
    for update, best_so_far in enumerate(best, 1):
        store.save(update, best_so_far)
        assert {update, best_so_far} <= set(store.checkpoints.updates())
    assert store.checkpoints.updates() == left
    assert not [path for path in store.checkpoints.folder.iterdir() if path.name.startswith(".")]


def flip(path: Path, at: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path, Path], Any]] = {
    "deleted": lambda path, other: path.unlink(),
    "emptied": lambda path, other: path.write_bytes(b""),
    "truncated": lambda path, other: path.write_bytes(path.read_bytes()[:-1]),
    "halved": lambda path, other: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "extended": lambda path, other: path.write_bytes(path.read_bytes() + b"\0"),
    "first byte flipped": lambda path, other: flip(path, 0.0),
    "middle byte flipped": lambda path, other: flip(path, 0.5),
    "last byte flipped": lambda path, other: flip(path, 1.0),
    "swapped for another checkpoint's": lambda path, other: shutil.copy(other, path),
    "zeroed": lambda path, other: path.write_bytes(b"\0" * path.stat().st_size),
    "replaced by a folder": lambda path, other: (path.unlink(), path.mkdir()),
    "replaced by a dangling link": lambda path, other: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_is_taken(store: Store, name: str, how: str) -> None:
    other, path = store.save(3) / name, store.save(6) / name
    intact = store.checkpoints.read(3)[0].tensors["model"]["w"]
    before = path.read_bytes()
    DAMAGE[how](path, other)
    if path.is_file() and path.read_bytes() == before:
        pytest.fail("the damage did nothing")
    # A flip inside the manifest can hit a hash or the white space between; white space is no damage.
    if name == "manifest.json" and path.is_file() and path.read_bytes() and _same_json(path, before):
        pytest.skip("the manifest says the same")
    with pytest.raises(CheckpointError, match="update_00000006"):
        store.checkpoints.read(6)
    assert store.newest() == 3
    (said,) = store.said
    assert "update_00000006" in said
    assert said.endswith("It is passed over for the one before it.")
    assert torch.equal(store.checkpoints.read(3)[0].tensors["model"]["w"], intact)


def _same_json(path: Path, before: bytes) -> bool:
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(before))
    except ValueError:
        return False


def test_a_strange_file_in_a_checkpoint_is_named(store: Store) -> None:
    (store.save(1) / "extra.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"extra.safetensors is not in the manifest"):
        store.checkpoints.read(1)


def test_whole_folders_under_each_others_names_are_refused(store: Store) -> None:
    one, two = store.save(1), store.save(2)
    one.rename(one.with_name("x"))
    two.rename(one)
    one.with_name("x").rename(two)
    with pytest.raises(CheckpointError, match="No whole checkpoint is left"):
        store.checkpoints.newest()
    assert len(store.said) == 2


def test_a_manifest_of_another_format_is_refused_not_guessed(store: Store) -> None:
    manifest = store.save(1) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match="not the manifest of update 1"):
        store.checkpoints.read(1)


def test_no_checkpoint_is_none_but_only_damaged_ones_are_an_error(store: Store) -> None:
    assert store.checkpoints.newest() is None
    (store.save(1) / "state.json").unlink()
    with pytest.raises(CheckpointError, match="No whole checkpoint is left") as caught:
        store.checkpoints.newest()
    assert "state.json" in caught.value.fix


def test_leftovers_of_a_killed_writer_are_no_checkpoints_and_go_with_the_next_save(store: Store) -> None:
    whole = store.save(1)
    for name in (".writing-update_00000002", ".old-7"):
        shutil.copytree(whole, whole.with_name(name))
    assert store.checkpoints.updates() == [1]
    assert store.newest() == 1
    store.save(2)
    assert sorted(path.name for path in store.checkpoints.folder.iterdir()) == ["update_00000001", "update_00000002"]


@pytest.mark.parametrize("name", ["update_x", "update_3", "update_00000003 (copy)", "update_0000000²", "notes.txt"])
def test_what_only_looks_like_a_checkpoint_is_left_alone(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path, keep=1)
    shutil.copytree(store.save(1), store.checkpoints.folder / name)
    store.save(2)
    store.save(4)
    assert store.checkpoints.updates() == [4]
    assert store.newest() == 4
    assert (store.checkpoints.folder / name).is_dir()


def fail(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["save_file", "write_json", "sync_file", "sha256_file", "sync_folder", "rename"])
def test_a_full_disk_leaves_the_older_checkpoints_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    store = Store(tmp_path, keep=1)
    before = {path: path.read_bytes() for path in store.save(1).iterdir()}
    owner = os if broken == "rename" else checkpoint
    with monkeypatch.context() as patched:
        patched.setattr(owner, broken, fail)
        with pytest.raises(CheckpointError, match=r"update 2 can't be written .*No space left") as caught:
            store.save(2)
    assert "--resume" in caught.value.fix
    assert {path: path.read_bytes() for path in before} == before
    assert [path for path in store.checkpoints.folder.iterdir() if path.name.startswith(".")] == []
    assert store.newest() in ((1, 2) if broken == "sync_folder" else (1,))
    store.save(2)
    assert store.newest() == 2


def test_everything_is_durable_before_the_manifest_and_that_before_the_name(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a save: files synced, then the manifest, then its folder, one rename, then the folder of that."""
    done: list[str] = []
    sync, replace, rename = os.fsync, os.replace, os.rename

    def fsync(handle: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")
        sync(handle)

    def renamed(real: Any) -> Any:
        return lambda a, b: (done.append(f"name {Path(b).name}"), real(a, b))[1]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", renamed(replace))
    monkeypatch.setattr(os, "rename", renamed(rename))
    store.save(1)
    assert [re.sub(r"\.part-.*", "PART", line) for line in done] == [
        f"sync {store.checkpoints.folder.parent.name}",
        "sync model.safetensors",
        "sync optimizer.safetensors",
        *("sync PART", "name state.json", "sync .writing-update_00000001"),
        *("sync PART", "name manifest.json", "sync .writing-update_00000001"),
        *("name update_00000001", "sync checkpoints"),
    ]


def test_hashes_are_computed_while_files_are_synced(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    hashing, met = threading.Event(), []
    digest, sync = checkpoint.sha256_file, checkpoint.sync_file

    def hashed(path: Path) -> str:
        hashing.set()
        return digest(path)

    def synced(path: Path) -> None:
        met.append((path.name, hashing.wait(10)))
        hashing.clear()
        sync(path)

    monkeypatch.setattr(checkpoint, "sha256_file", hashed)
    monkeypatch.setattr(checkpoint, "sync_file", synced)
    store.save(1)
    assert met == [("model.safetensors", True), ("optimizer.safetensors", True)]
    assert store.newest() == 1


def test_a_folder_that_can_not_be_made_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file of that name")
    with pytest.raises(CheckpointError, match="can't be written"):
        Store(tmp_path).save(1)


def test_saving_an_update_again_replaces_it(store: Store) -> None:
    store.save(2)
    (store.checkpoints.path(2) / "model.safetensors").write_bytes(b"")
    store.save(2)
    assert store.newest() == 2
    assert store.said == []


def test_a_damaged_best_checkpoint_is_named_when_the_run_is_resumed_and_not_at_its_end(store: Store) -> None:
    for update in (1, 2, 3):
        store.save(update, best=1 if update < 3 else 2)
    path = store.checkpoints.path(2) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.newest() == 1
    assert "It is the best so far, without which update 3 can't go on." in store.said[0]


def test_a_best_checkpoint_that_made_room_for_a_better_one_is_not_missed(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=2)
    for update, best in ((1, 1), (2, 1), (3, 3)):
        store.save(update, best)
    (store.checkpoints.path(3) / "state.json").unlink()
    assert store.checkpoints.updates() == [3, 2]
    assert store.newest() == 2


def test_a_checkpoint_of_something_else_is_one_message(store: Store) -> None:
    folder = store.save(1)
    (folder / "model.safetensors").write_bytes(b"no safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["sha256"]["model.safetensors"] = checkpoint.sha256_file(folder / "model.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="is whole, but no checkpoint of this toolkit"):
        store.checkpoints.read(1)


@pytest.mark.parametrize("failing", [1, 2])
def test_an_old_checkpoint_that_can_not_be_removed_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    store, real, calls = Store(tmp_path, keep=1), os.rename, 0
    store.save(1)

    def rename(source: Any, target: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing:  # the first puts the new one in its place, the second takes the old one away
            fail()
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(CheckpointError, match="No space left"):
        store.save(2)
    assert store.newest() == failing
