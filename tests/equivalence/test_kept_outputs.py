"""What is read from the cache are the bits that computing gives, and nothing that was computed from anything else."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finetune.evaluation import kept, predict
from finetune.evaluation.kept import KeptOutputs
from finetune.evaluation.predict import mean_pooled, predict_rows
from finetune.frozen_features import reused_features
from finetune.frozen_layers import reused_layers
from finetune.history import read_history
from finetune.task import SomeRows
from finetune.trainer import Trainer
from tests.trainers import make_trainer
from tests.unit.data.test_mapped import mapped_mib

pytestmark = pytest.mark.equivalence

FROZEN = ("adapter=frozen", "train.lr=1e-2", "train.max_updates=6", "train.eval_every_updates=3")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own: the user's cache may hold the same from before."""
    place = tmp_path / "outputs"
    place.mkdir()
    monkeypatch.setattr(kept, "cache_folder", lambda name: tmp_path / name)
    return place


class Probe:
    """A probe's features of some real rows, and what computing them takes."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.encoder = trainer, trainer.model.base_model
        self.collate = trainer.task.collate
        self.rows: Any = trainer.task.rows["valid"]
        self.scale = 1.0
        self.recipe, self.adapter = "hash of a recipe", {"name": "frozen"}
        self.passes = 0
        self.encoder.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def outputs(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return self.scale * mean_pooled(found.last_hidden_state, batch["attention_mask"])

    def keep(self) -> KeptOutputs:
        return KeptOutputs(self.trainer.settings, self.trainer.model, self.adapter, self.recipe)

    def read(self) -> tuple[np.ndarray, bool]:
        """The features, and whether they came from the cache; both ways they are what `predict_rows` gives."""
        before, keep = self.passes, self.keep()
        found = keep(self.encoder, self.rows, self.collate, self.outputs, self.trainer.accelerator, "probe")
        passes = self.passes - before
        plain = predict_rows(self.encoder, self.rows, self.collate, self.outputs, self.trainer.accelerator, "plain")
        assert np.array_equal(found, plain)
        assert found.dtype == np.float32
        # One batch of four rows each time, and the rows' own batch when they are computed.
        assert passes == (1 if keep.read else 2)
        assert keep.read in ([], ["probe"])
        return found, bool(keep.read)


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    return Probe(make_trainer(tmp_path / "run", *FROZEN))


def test_the_second_time_it_is_read(probe: Probe, capsys: pytest.CaptureFixture[str]) -> None:
    first, again = probe.read(), probe.read()
    assert (first[1], again[1]) == (False, True)
    assert np.array_equal(first[0], again[0])
    rows = len(probe.rows)
    assert f"probe: {rows} rows read from the cache, where an earlier run kept them" in capsys.readouterr().out


def test_pieces_make_the_file_that_numpy_saves(probe: Probe, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PIECE_BYTES", 5_000)  # three rows and a bit
    found, _ = probe.read()
    assert probe.read()[1]
    np.save(folder / "expected.npy", np.array(found), allow_pickle=False)
    expected = (folder / "expected.npy").read_bytes()
    assert [path.read_bytes() for path in folder.glob("*.npy") if path.stem != "expected"] == [expected]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it in other ways")
def test_a_mapped_file_is_kept_without_being_memory(probe: Probe, folder: Path) -> None:
    path = folder.parent / "hidden.bin"
    np.zeros(2**24, np.float32).tofile(path)
    found_NK = np.memmap(path, np.float32, mode="r+", shape=(2**16, 2**8))
    before = mapped_mib()
    kept._write("0" * 32, found_NK, "few", probe.trainer.accelerator)
    assert mapped_mib() < before + 32
    assert np.array_equal(np.load(folder / f"{'0' * 32}.npy"), found_NK)


def test_whatever_decides_the_numbers_is_asked_for(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    probe.read()
    settings = probe.trainer.settings

    def anew_and_back() -> None:
        assert probe.read()[1] is False
        assert probe.read()[1] is True

    weight = next(parameter for name, parameter in probe.encoder.named_parameters() if name.endswith("query.weight"))
    with torch.no_grad():
        before = weight[3, 5].clone()
        weight[3, 5] = torch.nextafter(before, torch.tensor(1.0))
        anew_and_back()
        weight[3, 5] = before
    assert probe.read()[1] is True

    probe.encoder.config.layer_norm_eps *= 2  # not in the weights; the modules read it when they are made
    anew_and_back()
    probe.encoder.config.layer_norm_eps /= 2

    rows, probe.rows = probe.rows, SomeRows(probe.rows, np.arange(len(probe.rows))[::-1].copy())
    anew_and_back()  # the same rows in another order
    probe.rows = rows

    probe.trainer.settings = settings.model_copy(update={"fast_attention": not settings.fast_attention})
    anew_and_back()
    probe.trainer.settings = settings

    for name, value in (("recipe", "hash of an edited recipe"), ("adapter", {"name": "lora", "init": "pissa"})):
        before_it = getattr(probe, name)
        setattr(probe, name, value)
        anew_and_back()
        setattr(probe, name, before_it)
    probe.adapter = {"name": "lora", "init": "default", "rank": 4}  # starts as the model came
    assert probe.read()[1] is True

    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    anew_and_back()
    torch.set_num_threads(threads)

    with monkeypatch.context() as patched:
        patched.setattr(kept, "_code", lambda: "another version of this toolkit")
        anew_and_back()
    assert probe.read()[1] is True


def test_a_function_that_changed_is_noticed_by_four_rows(probe: Probe, capsys: pytest.CaptureFixture[str]) -> None:
    """What a function of the recipe calls elsewhere is in no hash; here it has the same name and other numbers."""
    probe.read()
    probe.scale = 1.0 + 2.0**-20
    assert probe.read()[1] is False
    assert "is damaged, or no longer what the model gives; it is computed anew" in capsys.readouterr().out
    assert probe.read()[1] is True


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "emptied", "about", "shape", "list", "empty"])
def test_damage_is_said_and_mended(probe: Probe, folder: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    probe.read()
    (array,), (about,) = folder.glob("*.npy"), folder.glob("*.json")
    content = array.read_bytes()
    if damage == "flipped":
        array.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif damage == "cut":
        array.write_bytes(content[: len(content) // 2])
    elif damage == "gone":
        array.unlink()
    elif damage == "emptied":
        array.write_bytes(b"")
    elif damage == "about":
        about.write_text("{")
    elif damage == "list":
        about.write_text("[1]")
    elif damage == "empty":
        about.write_text("")
    else:  # whole files of other rows
        np.save(array, other := np.zeros((3, 384), np.float32))
        about.write_text(json.dumps({**json.loads(about.read_text()), "sha256": kept._sha256(other)}))
    assert probe.read()[1] is False
    said = capsys.readouterr().out
    assert said.count("it is computed anew") == 1
    assert about.stem in said
    assert probe.read()[1] is True


def test_objects_in_the_file_are_not_made(probe: Probe, folder: Path) -> None:
    """An array file may hold a pickle, which runs code when it is read."""
    probe.read()
    (array,), (about,) = folder.glob("*.npy"), folder.glob("*.json")
    np.save(array, np.array([[{}] * 384] * len(probe.rows), dtype=object), allow_pickle=True)
    assert probe.read()[1] is False
    assert about.exists()


def test_what_can_not_be_written_is_computed_each_time(
    probe: Probe, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.rmdir()
    folder.write_text("a file where the folder should be")
    for _ in range(2):
        assert probe.read()[1] is False
    assert capsys.readouterr().out.count("the next run computes this again, because it can't be kept") == 2


def test_it_never_takes_much_of_the_disk(
    probe: Probe, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=20 * len(probe.rows) * 384 * 4 - 1))
    assert probe.read()[1] is False
    assert list(folder.iterdir()) == []
    assert "0.00 GiB are much for a cache on a disk with 0.0 GiB left" in capsys.readouterr().out
    monkeypatch.setattr(kept.shutil, "disk_usage", lambda _: SimpleNamespace(free=20 * len(probe.rows) * 384 * 4))
    assert (probe.read()[1], probe.read()[1]) == (False, True)


def test_what_nobody_reads_for_a_month_is_forgotten(probe: Probe, folder: Path) -> None:
    probe.read()
    first = set(folder.iterdir())
    long_ago = time.time() - kept.UNREAD_S - 60

    def grow_old() -> None:
        for path in folder.iterdir():
            os.utime(path, (long_ago, long_ago))

    grow_old()
    assert probe.read()[1] is True  # old, but read again
    probe.recipe = "another recipe"
    probe.read()
    assert first < set(folder.iterdir())
    assert len(list(folder.iterdir())) == 4
    (folder / "notes.json").write_text("somebody's own")
    grow_old()
    probe.recipe = "a third recipe"
    probe.read()
    assert len(list(folder.iterdir())) == 2 + 1
    assert not first & set(folder.iterdir())
    assert (folder / "notes.json").exists()
    elsewhere = folder.rename(folder.with_name("elsewhere"))
    folder.symlink_to(elsewhere)
    grow_old()
    probe.recipe = "a fourth recipe"
    probe.read()
    assert len(list(elsewhere.iterdir())) == 4 + 1


def test_unlike_machines_keep_nothing_and_like_ones_share_the_work(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, one after the other: each hashes its own batches, and both come to the same key."""
    monkeypatch.setattr(predict, "CPU_TOKENS", 64)
    said: list[list[torch.Tensor]] = []

    def key(rank: int, world: int, other: list[torch.Tensor] | None) -> str:
        """Of a process that hears from the other one these hashes of batches, and of what it computes with."""
        mine: list[torch.Tensor] = []

        def reduce(tensor: torch.Tensor, reduction: str) -> torch.Tensor:
            assert reduction == "sum"
            mine.append(tensor.clone())
            return tensor if other is None else tensor + other[0]

        def gather(tensor: torch.Tensor) -> torch.Tensor:
            mine.append(tensor.clone())
            return tensor if other is None else torch.cat([tensor, other[1]])

        accelerator: Any = SimpleNamespace(
            process_index=rank, num_processes=world, device=torch.device("cpu"), mixed_precision="no",
            reduce=reduce, gather=gather,
        )  # fmt: skip
        found = probe.keep()._key(probe.encoder, probe.rows, probe.collate, probe.outputs, accelerator)
        said.append(mine)
        return found

    key(0, 2, None)
    key(1, 2, None)
    first, second = said
    assert torch.equal(first[1], second[1])
    worked = [some[0].any(1) for some in said]
    assert torch.equal(worked[0], ~worked[1])  # each batch by one of them
    assert all(some.sum() > 1 for some in worked)
    assert key(0, 2, second) == key(1, 2, first) == key(0, 1, None) != ""
    assert key(0, 2, [second[0], second[1] + 1]) == ""


def test_a_model_that_can_not_be_hashed_is_computed(probe: Probe, folder: Path) -> None:
    probe.encoder.register_buffer("rare", torch.eye(3).to_sparse())
    for _ in range(2):
        assert probe.read()[1] is False
    assert list(folder.iterdir()) == []


def test_a_frozen_model_trains_to_the_same_bits(tmp_path: Path) -> None:
    """The head is new in each run and by its seed: features go by the encoder alone."""

    def fitted(name: str, *more: str, keep: bool = True) -> tuple[Trainer, list[str]]:
        trainer = make_trainer(tmp_path / name, *FROZEN, *more)
        outputs = KeptOutputs(trainer.settings, trainer.model, {}, "")
        with reused_features(trainer, outputs if keep else None):
            trainer.fit()
        return trainer, outputs.read

    (plain, _), (first, none), (again, both) = fitted("plain", keep=False), fitted("first"), fitted("again")
    assert none == []
    assert both == ["features of train", "features of valid"]
    for other in (first, again):
        assert read_history(other.history.path) == read_history(plain.history.path)
        for name, value in plain.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    assert fitted("seed", "train.seed=1")[1] == both


def test_layers_above_frozen_ones_train_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hidden states go by the encoder and the line, not by the head: the other seed reads, another line computes."""
    layers = ("adapter=layers", "train.max_updates=45", "train.eval_every_updates=15", "train.batch_size=16")

    def fitted(name: str, *more: str, line: int = 4, keep: bool = True) -> tuple[Trainer, list[str], int]:
        trainer = make_trainer(tmp_path / name, *layers, f"adapter.freeze_below={line}", "train.epochs=9", *more)
        outputs = KeptOutputs(trainer.settings, trainer.model, {}, "")
        passes: list[int] = []
        lowest = trainer.model.bert.encoder.layer[0].attention.output.dense
        lowest.register_forward_hook(lambda *_: passes.append(1))
        with reused_layers(trainer, outputs if keep else None):
            trainer.fit()
        return trainer, outputs.read, len(passes)

    (plain, _, _), (first, none, computed) = fitted("plain", keep=False), fitted("first")
    again, both, looks = fitted("again")
    assert none == []
    assert both == ["hidden states of train", "hidden states of valid"]
    assert looks < computed  # four rows of each, and those that tell whether it may be
    for other in (first, again):
        assert read_history(other.history.path) == read_history(plain.history.path)
        for name, value in plain.model.state_dict().items():
            assert torch.equal(value, other.model.state_dict()[name]), name
    assert fitted("seed", "train.seed=1")[1] == both
    assert fitted("line", line=3)[1] == []
    # A disk that got full since then has no room for what need not be computed.
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10_000_000))
    assert fitted("full")[1] == both


def test_smaller_batches_for_want_of_memory_are_not_kept(probe: Probe, folder: Path) -> None:
    """They are rounded otherwise, and the next run may have the memory."""
    whole, met = probe.outputs, []

    def too_much_at_first(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(batch["input_ids"]) == len(probe.rows):
            met.append(True)
            raise RuntimeError("can't allocate memory")
        return whole(model, batch)

    keep, accelerator = probe.keep(), probe.trainer.accelerator
    found = keep(probe.encoder, probe.rows, probe.collate, too_much_at_first, accelerator, "probe")
    assert met
    plain = predict_rows(probe.encoder, probe.rows, probe.collate, whole, accelerator, "plain")
    assert np.allclose(found, plain, atol=1e-5)
    assert list(folder.iterdir()) == []


def test_a_run_without_memory_for_four_rows_goes_on(probe: Probe, folder: Path) -> None:
    whole = probe.outputs

    def one_by_one(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if len(batch["input_ids"]) > 1:
            raise MemoryError
        return whole(model, batch)

    keep, rows = probe.keep(), replace(probe.rows, labels=None)
    found = keep(probe.encoder, rows, probe.collate, one_by_one, probe.trainer.accelerator, "probe")
    assert len(found) == len(rows)
    assert list(folder.iterdir()) == []
