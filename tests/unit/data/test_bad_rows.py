"""Rows, texts and labels that are probably slips: refused with the line and a fix."""

import json
from pathlib import Path

import pytest
from toy_data import GOOD, Case, assert_refused, csv, jsonl, objects, parquet, put

pytestmark = pytest.mark.unit


CASES: list[Case] = [
    # JSON Lines
    ("JSON list", put({"d.jsonl": json.dumps(objects(GOOD)).encode()}), "d.jsonl", ["line 1: a JSON list"], "jq"),
    ("not an object", put({"d.jsonl": jsonl([*objects(GOOD), [1]])}), "d.jsonl", ["line 201", "JSON list"], "object"),
    ("broken JSON", put({"d.jsonl": jsonl(objects(GOOD)) + b'{"text": \n'}), "d.jsonl", ["line 201"], "one object"),
    (
        "missing key",
        put({"d.jsonl": jsonl([*objects(GOOD), {"text": "x"}])}),
        "d.jsonl",
        ["201", "'label'"],
        "same keys",
    ),
    (
        "texts of mixed types",
        put({"d.jsonl": jsonl([*objects(GOOD), {"text": 5, "label": "pos"}])}),
        "d.jsonl",
        ["line 201", "a number", "a string at", "line 1"],
        "strings",
    ),
    (
        "text is a list",
        put({"d.jsonl": jsonl([*objects(GOOD), {"text": ["a"], "label": "pos"}])}),
        "d.jsonl",
        ["line 201", "is a list"],
        "data.text",
    ),
    (
        "labels of mixed types",
        put({"d.jsonl": jsonl([*objects(GOOD), {"text": "x", "label": True}])}),
        "d.jsonl",
        ["line 201", "truth value", "line 1"],
        "same way",
    ),
    (
        "number and text with one name",
        put({"d.jsonl": jsonl([{"text": f"t {i}", "label": (i % 2) if i else "0"} for i in range(200)])}),
        "d.jsonl",
        ["'0'", "line 1"],
        "same way",
    ),
    (
        "null text",
        put({"d.jsonl": jsonl([*objects(GOOD), {"text": None, "label": "pos"}])}),
        "d.jsonl",
        ["201"],
        "Fill",
    ),
    (
        "half a character",
        put({"d.jsonl": jsonl(objects(GOOD)) + b'{"text": "\\ud83d", "label": "pos"}\n'}),
        "d.jsonl",
        ["line 201", "surrogate"],
        "whole",
    ),
    (
        "half a character in a label",
        put({"d.jsonl": jsonl(objects(GOOD)) + b'{"text": "x", "label": "\\ud83d"}\n'}),
        "d.jsonl",
        ["line 201", "surrogate"],
        "whole number",
    ),
    (
        "an integer without end",
        put({"d.jsonl": jsonl(objects(GOOD)) + b'{"text": "x", "label": ' + b"7" * 5000 + b"}\n"}),
        "d.jsonl",
        ["line 201", "not a JSON object"],
        "one object",
    ),
    # texts and labels
    ("empty text", put({"d.csv": csv([*GOOD, ("", "pos")])}), "d.csv", ["d.csv, line 202", "empty"], "delete the row"),
    ("blank text", put({"d.csv": csv([*GOOD, ("  ", "pos")])}), "d.csv", ["d.csv, line 202", "empty"], "Fill it in"),
    ("missing label", put({"d.csv": csv([*GOOD, ("x", "")])}), "d.csv", ["d.csv, line 202: no label"], "Fill it in"),
    ("NaN label", put({"d.csv": csv([*GOOD, ("x", "nan")])}), "d.csv", ["d.csv, line 202: no label"], "delete the row"),
    (
        "NaN label in Parquet",
        lambda f: parquet(f / "d.parquet", text=["a", "b"], label=[1.0, float("nan")]),
        "d.parquet",
        ["d.parquet, row 2: no label"],
        "Fill",
    ),
    (
        "labels with fractions",
        put({"d.csv": csv([(t, f"{i / 3:.2f}") for i, (t, _) in enumerate(GOOD)])}),
        "d.csv",
        ["line 3", "has a fraction"],
        "label_rule",
    ),
    (
        "one class",
        put({"d.csv": csv([(t, "pos") for t, _ in GOOD])}),
        "d.csv",
        ["only the label 'pos'"],
        "second class",
    ),
    ("case slip", put({"d.csv": csv([*GOOD, ("x", "Pos")])}), "d.csv", ["line 202", "'Pos'", "'pos'"], "the same way"),
    ("space slip", put({"d.csv": csv([*GOOD, ("x", "pos ")])}), "d.csv", ["line 202", "'pos '", "space"], "same way"),
    (
        "text column taken as label",
        put({"d.csv": csv([(t, f"note {i}") for i, (t, _) in enumerate(GOOD * 8)])}),
        "d.csv",
        ["1001 different values", "not a label"],
        "data.label",
    ),
    (
        "same id twice",
        put({"d.csv": csv([(f"{i % 150},film {i}", "ab"[i % 2]) for i in range(200)], "id,text,label")}),
        "d.csv",
        ["line 152", "'id'", "line 2"],
        "unique",
    ),
    ("missing id", put({"d.csv": b"id,text,label\n1,a b,x\n,c d,y\n"}), "d.csv", ["line 3", "the id"], "Fill it in"),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_refused_with_a_place_and_a_fix(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(case, tmp_path, monkeypatch)
