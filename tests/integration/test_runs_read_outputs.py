"""Runs one after the other, by one process and by two: the later ones read what the first computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.cache import cache_dir
from finetune.replay import first_difference
from tests.forks import forks
from tests.integration.test_launch_line import ROOT, environment, record_of
from tests.trainers import write_reviews

pytestmark = pytest.mark.integration

READ = ["probe", "probe", "features of train", "features of valid"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`finetune run bert_cls --adapter frozen` with a cache that holds models and data, and no outputs yet."""
    folder = tmp_path_factory.mktemp("kept")
    cache = folder / "cache"
    cache.mkdir()
    for name in ("wheels", "pypi", "models", "data", "tokens"):
        (cache_dir() / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(cache_dir() / name)
    reviews = write_reviews(folder / "reviews.csv", rows=300)
    settings = ["train.max_updates=4", "data.max_tokens=32", "train.threads=1", "train.precision=fp32"]
    arguments = ["run", "bert_cls", "--data", str(reviews)]

    def finished(name: str, *more: str, world: int = 1, adapter: str = "frozen") -> Path:
        flags = [flag for setting in [*settings, *more] for flag in ("--set", setting)]
        words = [*arguments, "--adapter", adapter, *flags, "--output", str(folder / name)]
        around = environment(PYTHONPATH=str(ROOT), FINETUNE_CACHE=str(cache))
        for done in forks().start(words, ROOT, around, world=world).wait_all():
            assert done.returncode == 0, done.stderr
        return folder / name

    return finished


def test_a_second_run_reads_and_ends_with_the_same_bits(run: Any) -> None:
    first, again, anew = run("first"), run("again"), run("anew", "train.keep_outputs=false")
    assert [record_of(some)["read_from_cache"] for some in (first, again, anew)] == [[], READ, []]
    for other in (again, anew):
        assert first_difference(first, other) is None
        assert record_of(first)["baselines"] == record_of(other)["baselines"]
        assert record_of(first)["gains"] == record_of(other)["gains"]


def test_two_processes_read_what_one_computed(run: Any) -> None:
    one, two = run("of one"), run("of two", world=2)
    assert record_of(two)["read_from_cache"] == READ
    assert record_of(one)["baselines"] == record_of(two)["baselines"]
    lines = [(some / "history.jsonl").read_text().splitlines() for some in (one, two)]
    for ours, theirs in zip(*lines, strict=True):
        before, after = json.loads(ours), json.loads(theirs)
        if "loss" in before:
            assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)


def test_one_process_reads_what_two_computed(run: Any) -> None:
    two, one = run("by two", "train.seed=5", "data.max_tokens=24", world=2), run("by one", "data.max_tokens=24")
    assert record_of(two)["read_from_cache"] == []
    assert record_of(one)["read_from_cache"] == READ


def test_what_an_adapter_starts_with_is_no_part_of_the_encoder_as_it_came(run: Any) -> None:
    """LoRA's first matrices are drawn by the seed; their product is 0."""
    full = run("full", "data.max_tokens=20", adapter="full")
    lora = run("lora", "data.max_tokens=20", "train.seed=3", "adapter.rank=2", adapter="lora")
    assert (record_of(full)["read_from_cache"], record_of(lora)["read_from_cache"]) == ([], ["probe", "probe"])
    probes = [record_of(some)["baselines"]["frozen-encoder probe"]["accuracy"]["value"] for some in (full, lora)]
    assert probes[0] == probes[1]
