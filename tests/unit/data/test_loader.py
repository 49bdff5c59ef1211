"""The loader: every kind of file gives the same rows, and what is kept is whole, shared and verified."""

import json
import types
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_data import GOOD, PLAIN, card, csv, files_below, jsonl, load, objects, parquet, put

from finetune.config import DataSettings
from finetune.data import loader
from finetune.data.loader import load_data
from finetune.data.splits import split_hash

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache" / "data"


def texts(source: str) -> list[str]:
    return sorted(text for rows in load(source).splits.values() for text in rows["text"])


def test_every_kind_of_file_gives_the_same_rows_and_hash(tmp_path: Path) -> None:
    tsv = csv(GOOD).replace(b",", b"\t")
    put({"a.csv": csv(GOOD), "b.tsv": tsv, "c.jsonl": jsonl(objects(GOOD)), "x/y/e.csv": csv(GOOD)})(tmp_path)
    parquet(tmp_path / "d.parquet", text=[text for text, _ in GOOD], label=[label for _, label in GOOD])
    loaded = [load(source) for source in ("a.csv", "b.tsv", "c.jsonl", "d.parquet", "x/y/e.csv")]
    assert len({data.sha256 for data in loaded}) == 1
    for data in loaded:
        assert data.labels == ("neg", "pos")
        assert data.splits["train"].column_names == ["id", "text", "label"]
        rows = [row for split in data.splits.values() for row in split]
        assert {(row["text"], data.labels[row["label"]]) for row in rows} == set(GOOD)
        assert len(rows) == len({row["id"] for row in rows}) == len(GOOD)


def test_hash_sees_texts_labels_and_order(tmp_path: Path) -> None:
    flipped = [(text, "neg" if label == "pos" else "pos") for text, label in GOOD]
    put({"a.csv": csv(GOOD), "b.csv": csv(flipped), "c.csv": csv([*GOOD[:-1], ("other", "pos")])})(tmp_path)
    put({"d.csv": csv(GOOD[::-1])})(tmp_path)
    assert len({load(source).sha256 for source in ("a.csv", "b.csv", "c.csv", "d.csv", "a.csv split_salt=x")}) == 5


def test_marks_line_ends_and_quotes(tmp_path: Path) -> None:
    body = csv(GOOD) + b'"two\nlines, ""quoted""",pos\n\n'
    put({"a.csv": body, "b.csv": b"\xef\xbb\xbf" + body.replace(b"\n", b"\r\n")})(tmp_path)
    assert 'two\nlines, "quoted"' in texts("a.csv")
    assert 'two\r\nlines, "quoted"' in texts("b.csv")
    assert load("b.csv").splits["train"].column_names[1] == "text"


def test_tsv_keeps_stray_quotes_as_glue_has_them(tmp_path: Path) -> None:
    put({"a.tsv": csv(GOOD).replace(b",", b"\t") + b'" it begins with a quote\tpos\n'})(tmp_path)
    assert '" it begins with a quote' in texts("a.tsv")


def test_ids_are_lines_or_the_id_column(tmp_path: Path) -> None:
    put({"a.csv": csv(GOOD), "f/train.csv": csv(GOOD), "f/test.csv": csv(GOOD[:60])})(tmp_path)
    put({"i.csv": csv([(f"k{i},{text}", label) for i, (text, label) in enumerate(GOOD)], "ID,text,label")})(tmp_path)
    assert {"2", "201"} <= {row["id"] for split in load("a.csv").splits.values() for row in split}
    assert load("f").splits["test"][0]["id"] == "test/2"
    assert {"k0", "k199"} <= {row["id"] for split in load("i.csv").splits.values() for row in split}


@pytest.mark.parametrize(
    ("raw", "labels"),
    [
        (["10", "9", "2"], ("2", "9", "10")),
        (["0.0", "1.0", "1"], ("0", "1")),
        (["b", " a", "C"], ("C", "a", "b")),
        (["01", "1x", "2"], ("01", "1x", "2")),
        (["7" * 5000, "x"], ("7" * 5000, "x")),
        (["123456789012345678.0", "1"], ("1", "123456789012345678")),
    ],
)
def test_label_order(tmp_path: Path, raw: list[str], labels: tuple[str, ...]) -> None:
    put({"a.csv": csv([(text, raw[i % len(raw)]) for i, (text, _) in enumerate(GOOD)])})(tmp_path)
    assert load("a.csv").labels == labels


def test_parquet_labels_of_several_types(tmp_path: Path) -> None:
    words = [text for text, _ in GOOD]
    parquet(tmp_path / "f.parquet", text=words, label=[float(i % 2) for i in range(200)])
    parquet(tmp_path / "b.parquet", text=words, label=[bool(i % 2) for i in range(200)])
    parquet(tmp_path / "n.parquet", text=[*range(200)], label=[i % 2 for i in range(200)])
    assert load("f.parquet").labels == ("0", "1")
    assert load("b.parquet").labels == ("false", "true")
    assert any("is it the right column" in note for note in load("n.parquet").notes)


def test_class_names_of_the_hubs_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": [text for text, _ in GOOD], "label": [i % 2 for i in range(200)]})
    features = {"info": {"features": {"label": {"names": ["sad", "glad"], "_type": "ClassLabel"}}}}
    (tmp_path / "h").mkdir()
    for name, part in (
        ("train-00000-of-00002", slice(0, 80)),
        ("train-00001-of-00002", slice(80, 140)),
        ("test", slice(140, 200)),
    ):
        rows = table.slice(part.start, part.stop - part.start)
        pq.write_table(
            rows.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / f"h/{name}.parquet"
        )
    data = load("h")
    assert data.labels == ("sad", "glad")
    assert list(data.splits["test"]["label"]) == [i % 2 for i in range(140, 200)]
    assert len({row["id"] for split in data.splits.values() for row in split}) == 200


def test_published_splits_stay_and_leaks_are_said(tmp_path: Path) -> None:
    put({"f/train.csv": csv(GOOD), "f/dev.csv": csv(GOOD[:3] + [("new one", "pos")] * 60)})(tmp_path)
    put({"f/test.csv": csv([(GOOD[5][0].upper(), "pos"), *((f"t {i}", "neg") for i in range(60))])})(tmp_path)
    data = load("f")
    assert {split: len(rows) for split, rows in data.splits.items()} == {"train": 200, "valid": 63, "test": 61}
    said = [note for note in data.notes if "as published" in note]
    assert [note.split()[0] for note in said] == ["3", "1"]


def test_a_class_with_one_row_stays_in_train(tmp_path: Path) -> None:
    put({"f/train.csv": csv([*GOOD, ("rare", "once")]), "f/test.csv": csv([*GOOD[:60], ("r", "once")])})(tmp_path)
    data = load("f")
    once = data.labels.index("once")
    assert list(data.splits["train"]["label"]).count(once) == 1
    assert once not in list(data.splits["valid"]["label"])
    assert len(data.splits["valid"]) == 20


def test_max_train_rows_takes_the_first_in_hash_order(tmp_path: Path) -> None:
    put({"a.csv": csv(GOOD)})(tmp_path)
    whole, cut = load("a.csv"), load("a.csv max_train_rows=20")
    train = list(whole.splits["train"]["text"])
    first = set(sorted(train, key=lambda text: split_hash("finetune", [text]))[:20])
    assert list(cut.splits["train"]["text"]) == [text for text in train if text in first]
    assert list(cut.splits["test"]["text"]) == list(whole.splits["test"]["text"])
    assert any("keeps 20 of" in note for note in cut.notes)


def test_sign_rule_drops_zero_and_says_so(tmp_path: Path) -> None:
    rows = [(text, f"{(i % 5) - 2}.5" if i % 5 else "0.0") for i, (text, _) in enumerate(GOOD)]
    put({"c.md": card(PLAIN + "  label_rule: {sign: true}\n"), "d.csv": csv(rows)})(tmp_path)
    data = load("c.md")
    assert data.labels == ("neg", "pos")
    assert any(note.startswith("40 rows with the value 0 were left out") for note in data.notes)
    assert sum(len(rows) for rows in data.splits.values()) == 160


def test_a_cards_own_salt_gives_way_to_a_changed_setting_only(tmp_path: Path) -> None:
    put({"c.md": card(PLAIN + "  splits: {salt: own}\n"), "d.csv": csv(GOOD)})(tmp_path)
    by_card, explicit = load("c.md"), load("c.md split_salt=finetune")
    assert by_card.sha256 == explicit.sha256 == load("d.csv split_salt=own").sha256
    assert load("c.md split_salt=other").sha256 != by_card.sha256


def test_mirror_is_used_where_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = PLAIN.replace("path: ., files: {all: d.csv}", "hub: a/b, files: {all: data/d.csv}, mirror: m")
    put({"c.md": card(block), "root/m/d.csv": csv(GOOD)})(tmp_path)
    monkeypatch.setenv("FINETUNE_DATA", str(tmp_path / "root"))
    assert len(load("c.md").splits) == 3


def test_a_hub_id_is_fetched_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put({"snapshot/data/train.csv": csv(GOOD), "snapshot/data/test.csv": csv(GOOD[:60])})(tmp_path)
    asked = []

    def fetch(repo_id: str, revision: str | None) -> Path:
        asked.append((repo_id, revision))
        return tmp_path / "snapshot"

    monkeypatch.setattr("finetune.data.plan.hub_data_files", fetch)
    put({"c.md": card(PLAIN.replace("path: ., files: {all: d.csv}", "hub: some/reviews, revision: abc"))})(tmp_path)
    assert load("some/reviews revision=v1").sha256 == load("c.md").sha256
    assert load("some/reviews").name == "some/reviews"
    assert asked == [("some/reviews", "v1"), ("some/reviews", "abc"), ("some/reviews", None)]


def test_rows_without_labels_are_loaded_too(tmp_path: Path) -> None:
    put({"a.csv": csv(GOOD)})(tmp_path)
    data = load_data(DataSettings(source="a.csv"), {"text": None})
    assert data.labels == ()
    assert data.splits["train"].column_names == ["id", "text"]


def test_pairs_are_two_texts(tmp_path: Path) -> None:
    put({"a.csv": csv([(f"{text},reply {i}", label) for i, (text, label) in enumerate(GOOD)], "text,answer,label")})(
        tmp_path
    )
    data = load_data(DataSettings(source="a.csv"), {"text": None, "text_pair": "answer", "label": None})
    assert data.splits["train"].column_names == ["id", "text", "text_pair", "label"]
    assert data.splits["train"][0]["text_pair"].startswith("reply")


def test_the_cache_is_used_and_verified(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put({"a.csv": csv(GOOD)})(tmp_path)
    first = load("a.csv")
    with monkeypatch.context() as patch:
        patch.setattr(loader, "stage", lambda *_: pytest.fail("read again"))
        assert load("a.csv").sha256 == first.sha256
    kept = next(cache.glob("*/train.arrow"))
    content = bytearray(kept.read_bytes())
    content[-200] ^= 1
    kept.unlink()  # the first load still maps the old file
    kept.write_bytes(bytes(content))
    again = load("a.csv")
    assert "damaged" in capsys.readouterr().err
    assert (again.sha256, again.notes) == (first.sha256, first.notes)
    assert kept.read_bytes() != bytes(content)


def test_a_killed_writers_leftovers_go(tmp_path: Path, cache: Path) -> None:
    put({"a.csv": csv(GOOD)})(tmp_path)
    load("a.csv")
    folder = next(cache.glob("[0-9a-f]*"))
    half = cache / f".{folder.name}-99999"
    folder.rename(half)
    load("a.csv")
    assert folder.is_dir()
    assert not half.exists()


def test_a_table_kept_by_other_code_is_not_used(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept table once outlived a change of the hash that stands in it."""
    put({"a.csv": csv(GOOD), "reading.py": b"# older"})(tmp_path)
    load("a.csv")
    module = types.ModuleType("reading")
    module.__file__ = str(tmp_path / "reading.py")
    monkeypatch.setattr(loader, "READING", (*loader.READING, module))
    load("a.csv")
    (tmp_path / "reading.py").write_text("# newer")
    load("a.csv")
    load("a.csv")
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 3


def test_changed_rows_are_read_anew(tmp_path: Path) -> None:
    put({"a.csv": csv(GOOD)})(tmp_path)
    first = load("a.csv")
    put({"a.csv": csv([*GOOD, ("one more", "pos")])})(tmp_path)
    assert load("a.csv").sha256 != first.sha256


def test_nothing_is_written_beside_the_users_file(tmp_path: Path) -> None:
    put({"own/a.csv": csv(GOOD)})(tmp_path)
    load("own/a.csv")
    assert {path.name for path in files_below(tmp_path / "own")} == {"a.csv"}
