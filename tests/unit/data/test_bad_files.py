"""Sources, files and columns that can't be what was meant: refused with a place and a fix."""

import gzip
import pickle
import zipfile
from pathlib import Path

import pytest
from toy_data import GOOD, Case, assert_refused, csv, parquet, put

pytestmark = pytest.mark.unit


def cut_parquet(folder: Path) -> None:
    parquet(folder / "d.parquet", text=[t for t, _ in GOOD], label=[lab for _, lab in GOOD])
    content = (folder / "d.parquet").read_bytes()
    (folder / "d.parquet").write_bytes(content[: len(content) // 2])


def flipped_parquet(folder: Path) -> None:
    """The footer is whole, a data page isn't."""
    parquet(folder / "d.parquet", text=[t * 50 for t, _ in GOOD], label=[lab for _, lab in GOOD])
    content = bytearray((folder / "d.parquet").read_bytes())
    content[4:400] = b"\xff" * 396
    (folder / "d.parquet").write_bytes(bytes(content))


def zipped(folder: Path) -> None:
    with zipfile.ZipFile(folder / "d.csv", "w") as archive:
        archive.writestr("xl/workbook.xml", "<x/>")


CASES: list[Case] = [
    # what data.source names
    ("missing file", put({"reviews.csv": csv(GOOD)}), "review.csv", ["review.csv does not exist"], "reviews.csv"),
    ("missing folder", put({}), "no/where/d.csv", ["no/where/d.csv"], "Check the path"),
    ("misspelt card", put({}), "sms_spm", ["sms_spm"], "sms_spam"),
    ("misspelt card file", put({}), "toy.md", ["toy.md does not exist"], "Shipped cards"),
    ("nothing by that name", put({}), "zzzqqq", ["zzzqqq"], "owner/name"),
    ("empty source", put({}), " ", ["data.source is empty"], "--data"),
    ("path beside a folder is no hub id", put({"data/x.csv": csv(GOOD)}), "data/x", ["data/x does not exist"], "x.csv"),
    ("revision of a file", put({"d.csv": csv(GOOD)}), "d.csv revision=main", ["data.revision=main"], "Leave it out"),
    # kinds of files
    ("unknown extension", put({"d.dat": csv(GOOD)}), "d.dat", ["d.dat", ".dat"], ".parquet"),
    ("no extension", put({"reviews": csv(GOOD)}), "reviews", ["reviews", "(none)"], ".csv"),
    ("a JSON file", put({"d.json": b"[]"}), "d.json", ["d.json", ".json"], ".jsonl"),
    ("text file", put({"d.txt": b"a\n"}), "d.txt", ["d.txt"], "card"),
    ("gzip called csv", put({"d.csv": gzip.compress(csv(GOOD))}), "d.csv", ["d.csv is gzip"], "gunzip"),
    ("Excel called csv", zipped, "d.csv", ["d.csv is a zip archive or an Excel"], "export the sheet"),
    ("pickle called csv", put({"d.csv": pickle.dumps(GOOD)}), "d.csv", ["d.csv is a Python pickle"], "Export"),
    ("Parquet called csv", put({"d.csv": b"PAR1xxxx"}), "d.csv", ["d.csv is Parquet"], ".parquet"),
    ("CSV called parquet", put({"d.parquet": csv(GOOD)}), "d.parquet", ["d.parquet", "Parquet"], ".csv"),
    ("UTF-16", put({"d.csv": csv(GOOD).decode().encode("utf-16")}), "d.csv", ["d.csv is UTF-16"], "iconv"),
    ("null byte", put({"d.csv": csv(GOOD) + b"a\0b,pos\n"}), "d.csv", ["d.csv, line 202", "null byte"], "UTF-8"),
    (
        "null byte far down",
        put({"d.csv": csv(GOOD * 20) + b"a\0b,pos\n"}),
        "d.csv",
        ["d.csv, line 4002", "null byte"],
        "UTF-8",
    ),
    ("Parquet cut off", cut_parquet, "d.parquet", ["d.parquet can't be read"], "cut off"),
    ("Parquet with a broken page", flipped_parquet, "d.parquet", ["d.parquet can't be read"], "damaged"),
    # bytes and lines
    ("empty file", put({"d.csv": b""}), "d.csv", ["d.csv is empty"], "header"),
    ("blank lines only", put({"d.csv": b"\n\n"}), "d.csv", ["d.csv is empty"], "header"),
    ("header only", put({"d.csv": b"text,label\n"}), "d.csv", ["d.csv has a header but no row"], "Add rows"),
    (
        "Latin-1",
        put({"d.csv": csv(GOOD) + "caf\u00e9,pos\n".encode("latin-1")}),
        "d.csv",
        ["d.csv, line 202, byte 4: 0xe9 is not utf-8"],
        "encoding",
    ),
    ("ragged row", put({"d.csv": csv(GOOD) + b"well, well,pos\n"}), "d.csv", ["line 202: 3 fields"], "quotes"),
    ("short row", put({"d.csv": csv(GOOD) + b"well\n"}), "d.csv", ["line 202: 1 field, but 2"], "quotes"),
    (
        "ragged after a quoted line break",
        put({"d.csv": csv(GOOD) + b'"one\ntwo\nthree",pos\na,b,c\n'}),
        "d.csv",
        ["d.csv, line 205: 3 fields"],
        "quotes",
    ),
    (
        "unclosed quote",
        put({"d.csv": csv(GOOD) + b'"never closed,pos\nx,neg\n'}),
        "d.csv",
        ["d.csv, line 202", "never closed"],
        "Close it",
    ),
    ("stray quote", put({"d.csv": csv(GOOD) + b'"a "b" c",pos\n'}), "d.csv", ["d.csv, line 202"], "written twice"),
    ("old Mac line ends", put({"d.csv": csv(GOOD).replace(b"\n", b"\r")}), "d.csv", ["carriage return"], "line feeds"),
    (
        "semicolons",
        put({"d.csv": csv(GOOD).replace(b",", b";")}),
        "d.csv",
        ["d.csv, line 1", "semicolons"],
        'delimiter: ";"',
    ),
    ("tabs in csv", put({"d.csv": csv(GOOD).replace(b",", b"\t")}), "d.csv", ["d.csv, line 1", "tabs"], ".tsv"),
    ("commas in tsv", put({"d.tsv": csv(GOOD)}), "d.tsv", ["d.tsv, line 1", "commas"], ".csv"),
    # columns
    ("unknown column", put({"d.csv": csv(GOOD)}), "d.csv label=labl", ["no column 'labl'", "text, label"], "'label'"),
    ("no usual name", put({"d.csv": csv(GOOD, "a,b")}), "d.csv", ["d.csv", "columns: a, b"], "--set data.text="),
    (
        "no header",
        put({"d.csv": csv(GOOD, "this is a first row of data,pos")}),
        "d.csv",
        ["first line looks like a row"],
        "data.text",
    ),
    ("header twice", put({"d.csv": csv(GOOD, "text,text")}), "d.csv", ["two columns are named 'text'"], "Rename"),
    ("one column, two roles", put({"d.csv": csv(GOOD)}), "d.csv text=label", ["both text and label"], "data.label"),
    (
        "columns differ between files",
        put({"f/train.csv": csv(GOOD), "f/test.csv": csv(GOOD[:9], "text,answer")}),
        "f",
        ["test.csv has no column 'label'", "train.csv has"],
        "same columns",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_refused_with_a_place_and_a_fix(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(case, tmp_path, monkeypatch)
