"""Tables: files that are read or refused, runs that are left, documents made of records, and their check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.bench.check import check
from finetune.bench.children import core_sets
from finetune.bench.estimate import estimates
from finetune.bench.frozen import kshot_rows
from finetune.bench.jobs import (
    Job,
    answers_of,
    data_hash,
    jobs_of_cell,
    packed,
    pending,
    read_records,
    stored_of,
    unpacked,
)
from finetune.bench.show import cells_of, show
from finetune.bench.table import Table, load_table, table_names
from finetune.bench.work import check_table, run_table
from finetune.errors import ConfigError, DataError
from finetune.evaluation.stored import Stored
from finetune.files import write_json

pytestmark = pytest.mark.unit

TABLE = """
title = "A table"
about = "Of a test."
seeds = [0, 1, 2]
[[rows]]
name = "full"
recipe = "bert_cls"
[[rows]]
name = "TF-IDF"
recipe = "bert_cls"
method = "tfidf"
[[columns]]
name = "spam"
data = "sms_spam"
"""
REFERENCE = """
[[references]]
row = "TF-IDF"
column = "spam"
value = 80.0
protocol = "same"
tolerance = 2.0
source = "by hand"
"""
SEARCH = 'search = {key = "train.lr", values = [1e-4, 3e-4]}\n'


def table(folder: Path, text: str = TABLE) -> Table:
    (folder / "mine.toml").write_text(text, "utf-8")
    return load_table(str(folder / "mine.toml"))


def finished(some: Table, job: Job, folder: Path, share: float, valid: float | None = None) -> dict[str, Any]:
    """The record of a run whose first rows, `share` of 200, are right."""
    labels = np.arange(200) % 2
    answers = np.where(np.arange(200) < round(200 * share), labels, 1 - labels)
    stored = Stored("classes", tuple(map(str, range(200))), labels, answers, ("ham", "spam"))
    record = {
        "key": job.key(some), "row": job.row.name, "column": job.column.name, "seed": job.seed, "metric": "accuracy",
        "score": stored.value("accuracy"), "valid_score": valid, "trainable": 10, "train_s": 1.5, "peak_rss_mb": 100.0,
        "wall_s": 2.0, "hardware": {"cpu": "a processor", "threads": 1}, "test": answers_of(stored),
        "versions": {"torch": "2", "transformers": "5", "finetune": "0"},
    }  # fmt: skip
    (folder / some.name).mkdir(parents=True, exist_ok=True)
    write_json(folder / some.name / f"{record['key']}.json", record)
    return record


def run_all(some: Table, folder: Path, share: float = 0.9, data_hash: str | None = None) -> None:
    while todo := pending(some, read_records(some, folder)):
        for job in todo:
            right = share - 0.1 * (job.row.name == "TF-IDF") - 0.01 * job.seed
            record = finished(some, job, folder, right, valid=0.5)
            write_json(folder / some.name / f"{record['key']}.json", {**record, "data_hash": data_hash})


@pytest.mark.parametrize("name", table_names())
def test_shipped_tables_are_read(name: str) -> None:
    assert load_table(name).content.title


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('recipe = "bert_cls"\n', 'recipe = "bert_cls"\nrecpie = "x"\n', "did you mean recipe"),
        ("seeds = [0, 1, 2]", "seeds = [0, 0]", "seeds: one stands there twice"),
        ('data = "sms_spam"', 'data = "sms_spam"\nmetric = "acuracy"', "did you mean accuracy"),
        ('method = "tfidf"', 'method = "tfidf"\nshots = 3', "shots goes with"),
        ('method = "tfidf"', 'method = "tfidf"\nadapter = "lora"', "go with method=fine-tune"),
        ('name = "TF-IDF"', 'name = "full"', "two rows are named"),
        ("[[columns]]", "[[columns", "line"),
        ('method = "tfidf"', 'metod = "tfidf"', "unknown key rows 'TF-IDF': metod (did you mean method?)"),
        ('method = "tfidf"', 'method = "tf-idf"', "(it is 'tf-idf'; did you mean tfidf?)"),
        ("seeds = [0, 1, 2]", "seeds = 2", "seeds: input should be a valid list"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, before: str, after: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"mine\.toml") as error:
        table(tmp_path, TABLE.replace(before, after, 1))
    assert said in str(error.value)


def test_a_reference_to_no_row_suggests_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'TF-IDF'"):
        table(tmp_path, TABLE + REFERENCE.replace('"TF-IDF"', '"TFIDF"'))


def test_an_unknown_table_suggests_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean textgcn"):
        load_table("textgnc")
    table(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"Did you mean mine\.toml"):
        load_table("mine")


def test_what_no_run_could_take_is_refused_with_its_row(tmp_path: Path) -> None:
    """Before the first run, and by `plan`."""
    some = table(tmp_path, TABLE.replace('method = "tfidf"', 'method = "tfidf"\nset = ["train.max_update=2"]'))
    with pytest.raises(
        ConfigError, match=r"TF-IDF on spam: train\.max_update .*(?s:.)*Did you mean train\.max_updates"
    ):
        check_table(some)
    (tmp_path / "reviews.csv").write_text("text,label\na,b\n")
    with pytest.raises(ConfigError, match=r"column spam: .*review\.csv does not exist(?s:.)*reviews\.csv"):
        check_table(table(tmp_path, TABLE.replace('"sms_spam"', '"review.csv"')))


def test_data_that_changed_after_a_run_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\na,good\nb,bad\n")
    some = table(tmp_path, TABLE.replace('"sms_spam"', '"reviews.csv"'))
    before = data_hash(some, some.content.columns[0])
    run_all(some, tmp_path, data_hash=before)
    show(some, tmp_path)
    assert check(some, tmp_path) == []
    (tmp_path / "reviews.csv").write_text("text,label\na,bad\nb,bad\n")
    (wrong,) = check(some, tmp_path)
    assert "reviews.csv has changed since 4 records of spam were made" in wrong
    with pytest.raises(DataError, match="has changed since"):
        run_table(some, tmp_path, 1)
    (tmp_path / "reviews.csv").unlink()  # on a machine without them there is nothing to compare
    assert check(some, tmp_path) == []


def test_a_folder_is_what_its_files_hold(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "train.csv").write_text("text,label\na,good\n")
    (tmp_path / "own" / "cat.png").write_bytes(b"12345")
    some = table(tmp_path, TABLE.replace('"sms_spam"', '"./own"'))
    (column,) = some.content.columns
    hashes = [data_hash(some, column)]
    for name, content in (("train.csv", b"text,label\na,evil\n"), ("cat.png", b"123456"), ("dog.png", b"1")):
        (tmp_path / "own" / name).write_bytes(content)
        hashes.append(data_hash(some, column))
    assert len(set(hashes)) == 4
    (shipped,) = load_table("nanogpt_cpu").content.columns
    assert data_hash(load_table("nanogpt_cpu"), shipped.model_copy(update={"data": "sms_spam"})) is None


def test_runs_left_are_those_without_a_record_and_seedless_rows_run_once(tmp_path: Path) -> None:
    some = table(tmp_path)
    todo = pending(some, {})
    assert [(job.row.name, job.seed) for job in todo] == [("full", 0), ("TF-IDF", 0), ("full", 1), ("full", 2)]
    finished(some, todo[0], tmp_path, 0.9)
    assert pending(some, read_records(some, tmp_path)) == todo[1:]


def test_a_changed_row_is_another_run(tmp_path: Path) -> None:
    one = pending(table(tmp_path), {})[0].key(table(tmp_path))
    other = table(tmp_path, TABLE.replace('"bert_cls"\n', '"bert_cls"\nset = ["train.lr=1e-5"]\n', 1))
    assert pending(other, {})[0].key(other) != one


def test_a_changed_recipe_is_another_run_and_a_changed_docstring_is_none(tmp_path: Path) -> None:
    text = TABLE.replace('recipe = "bert_cls"', 'recipe = "mine.py"', 1)
    keys = []
    for lr, said in (("1e-4", "One."), ("1e-4", "Measured: 0.9."), ("2e-4", "One.")):
        code = f'"""{said}"""\nfrom finetune.recipe import base\ndef config():\n    c = base("bert_cls").config()\n'
        (tmp_path / "mine.py").write_text(f"{code}    c.train.lr = {lr}\n    return c  # {said}\n", "utf-8")
        keys.append([job.key(table(tmp_path, text)) for job in pending(table(tmp_path, text), {})])
    assert keys[0] == keys[1]
    assert keys[0][0] != keys[2][0]  # the row of the recipe
    assert keys[0][1] == keys[2][1]  # the other row


def test_draws_of_rows_make_every_method_run_with_every_seed(tmp_path: Path) -> None:
    some = table(tmp_path, TABLE.replace('data = "sms_spam"', 'data = "sms_spam"\nset = ["data.shots=8"]'))
    assert len([job for job in pending(some, {}) if job.row.name == "TF-IDF"]) == 3


def test_workers_have_cores_of_their_own_and_sharing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {2, 3, 5, 7})
    assert core_sets(2, 1) == [{2}, {3}]
    assert core_sets(2, 2) == [{2, 3}, {5, 7}]
    assert capsys.readouterr().err == ""
    assert core_sets(3, 2) == [{2, 3}, {5, 7}, {2, 3}]
    assert "3 workers of 2 thread(s) share 4 core(s)" in capsys.readouterr().err


def test_the_estimate_goes_by_the_runs_that_are_done(tmp_path: Path) -> None:
    some = table(tmp_path)
    cells, stale = estimates(some, {})
    assert [(cell.done, cell.planned, cell.seconds) for cell in cells] == [(0, 3, None), (0, 1, None)]
    finished(some, pending(some, {})[0], tmp_path, 0.9)
    other = table(tmp_path, TABLE.replace('"bert_cls"\n', '"bert_cls"\nset = ["train.lr=1e-5"]\n', 1))
    cells, stale = estimates(some, read_records(some, tmp_path))
    assert [(cell.done, cell.planned, cell.seconds) for cell in cells] == [(1, 3, 2.0), (0, 1, None)]
    assert stale == 0
    cells, stale = estimates(other, read_records(other, tmp_path))
    assert (cells[0].done, cells[0].seconds, stale) == (0, 2.0, 1)


def test_a_search_goes_first_and_its_best_value_goes_on(tmp_path: Path) -> None:
    some = table(tmp_path, TABLE.replace('recipe = "bert_cls"\n', 'recipe = "bert_cls"\n' + SEARCH, 1))
    tries = [job for job in pending(some, {}) if job.row.name == "full"]
    assert [(job.seed, job.searched) for job in tries] == [(0, 1e-4), (0, 3e-4)]
    finished(some, tries[0], tmp_path, 0.9, valid=0.7)
    finished(some, tries[1], tmp_path, 0.6, valid=0.8)  # chosen by the validation score, whatever the test says
    records = read_records(some, tmp_path)
    scored, _ = jobs_of_cell(some, some.content.rows[0], some.content.columns[0], records)
    assert [(job.seed, job.searched) for job in scored] == [(0, 3e-4), (1, 3e-4), (2, 3e-4)]
    assert len([job for job in pending(some, records) if job.row.name == "full"]) == 2


def test_the_interval_over_seeds_is_students(tmp_path: Path) -> None:
    from scipy import stats

    some = table(tmp_path)
    run_all(some, tmp_path)
    cell = cells_of(some, read_records(some, tmp_path))[0]
    assert cell.scores == pytest.approx([90.0, 89.0, 88.0])
    assert cell.interval() == pytest.approx(stats.t.interval(0.95, 2, 89.0, stats.sem(cell.scores)))


def test_check_passes_on_what_show_made_and_fails_on_any_changed_digit(tmp_path: Path) -> None:
    some = table(tmp_path, TABLE + REFERENCE)
    run_all(some, tmp_path)
    text = show(some, tmp_path)
    assert r"89.00 \[86.52, 91.48\], n = 3" in text
    assert "not run" not in text
    assert (tmp_path / "mine.png").stat().st_size > 5000
    assert check(some, tmp_path) == []
    for name, before, after in (
        ("mine.md", "89.00", "89.01"),
        ("mine.csv", "0.9", "0.8"),
        ("mine.html", "89.00", "89.10"),
    ):
        whole = (tmp_path / name).read_text("utf-8")
        (tmp_path / name).write_text(whole.replace(before, after, 1), "utf-8")
        (wrong,) = check(some, tmp_path)
        assert f"{name}, line" in wrong
        (tmp_path / name).write_text(whole, "utf-8")
    assert check(some, tmp_path) == []


def test_check_fails_on_a_record_whose_score_is_not_that_of_its_answers(tmp_path: Path) -> None:
    some = table(tmp_path)
    run_all(some, tmp_path)
    path = next((tmp_path / "mine").glob("full*s0*.json"))
    record = json.loads(path.read_text("utf-8"))
    write_json(path, {**record, "score": 0.91})
    show(some, tmp_path)
    assert check(some, tmp_path) == [f"{record['key']}.json says accuracy 0.91, its answers give 0.9"]


def test_check_fails_outside_the_tolerance_of_the_same_protocol(tmp_path: Path) -> None:
    some = table(tmp_path, TABLE + REFERENCE.replace("80.0", "77.0"))
    run_all(some, tmp_path)
    show(some, tmp_path)
    assert check(some, tmp_path) == ["TF-IDF on spam: 80.00, published 77 ± 2 (by hand)"]


def test_check_fails_where_nothing_was_run(tmp_path: Path) -> None:
    some = table(tmp_path, TABLE + REFERENCE)
    show(some, tmp_path)
    (wrong,) = check(some, tmp_path)
    assert "No run of mine has a record" in wrong
    finished(some, next(job for job in pending(some, {}) if job.row.name == "full"), tmp_path, 0.9)
    show(some, tmp_path)
    assert check(some, tmp_path) == ["TF-IDF on spam: not run, published 80 ± 2 (by hand)"]
    (tmp_path / "mine.png").unlink()
    assert check(some, tmp_path)[0].endswith("mine.png is not there: finetune bench show mine.toml")


def test_a_method_that_learnt_nothing_is_named_and_no_share_leaves_its_range(tmp_path: Path) -> None:
    some = table(tmp_path, TABLE.replace("[0, 1, 2]", "[0, 1]"))
    for job in pending(some, {}):
        finished(some, job, tmp_path, 0.5 if job.row.name == "TF-IDF" else 0.99 - 0.1 * job.seed)
    text = show(some, tmp_path)
    assert r"94.00 \[30.47, 100.00\], n = 2" in text
    assert (
        "**No better than always the commonest class** of the test rows: TF-IDF on spam (the commonest class: " in text
    )


def test_an_unfinished_table_says_so(tmp_path: Path) -> None:
    some = table(tmp_path)
    finished(some, pending(some, {})[0], tmp_path, 0.9)
    text = show(some, tmp_path)
    assert "n = 1 of 3" in text
    assert "at least 3 runs of this table have no record yet" in text
    assert check(some, tmp_path) == []


def test_answers_come_back_from_their_packed_form(tmp_path: Path) -> None:
    whole, floats = np.array([0, 3, 51]), np.array([0.5, -2.25, 1e-3], np.float32)
    assert unpacked(packed(whole)).tolist() == [0, 3, 51]
    assert unpacked(packed(floats)).tolist() == floats.tolist()
    sizes = np.array([[10.0, 12.0], [3.0, 4.0]])
    stored = Stored("documents", ("a", "b"), sizes, np.array([20.0, 6.0]))
    back = stored_of({"key": "k", "test": answers_of(stored)})
    assert back.value("perplexity") == pytest.approx(np.exp(2.0))


def test_kshot_rows_are_mtebs() -> None:
    labels = np.random.default_rng(0).integers(0, 4, 200)
    order, draws = np.arange(200), []
    for _ in range(3):  # as mteb has it: one list, shuffled on and on, by a state that begins anew
        state = np.random.RandomState(42)
        state.shuffle(order)
        counter: dict[int, int] = {}
        draw = []
        for index in order:
            if counter.get(int(labels[index]), 0) < 5:
                draw.append(int(index))
                counter[int(labels[index])] = counter.get(int(labels[index]), 0) + 1
        draws.append(draw)
    assert [kshot_rows(labels, 5, draw).tolist() for draw in range(3)] == draws
