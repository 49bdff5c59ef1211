"""Whatever bytes a file holds, reading ends in rows or in one FinetuneError, counted the same way when lenient."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_data import GOOD, csv, jsonl, objects

from finetune.config import TextClassificationData
from finetune.data.plan import make_plan
from finetune.data.problems import Problems
from finetune.data.staging import stage
from finetune.errors import FinetuneError

pytestmark = pytest.mark.unit

ROLES = {"text": None, "label": None}
PIECES = st.sampled_from([b'"', b",", b"\t", b"\n", b"\r\n", b"\r", b"a", b"0", b"1.5", b"\xff", b"\xe2\x82", b"{}"])
JUNK = st.binary(max_size=40) | st.lists(PIECES, max_size=30).map(b"".join)


def outcome(path: Path, *, strict: bool) -> str:
    """One of read, refused, or problems (noted by a lenient reading)."""
    problems = Problems(strict=strict)
    with tempfile.TemporaryDirectory() as folder:
        try:
            stage(make_plan(TextClassificationData(source=str(path)), ROLES), Path(folder), problems)
        except FinetuneError as error:
            return "refused" if error.fix else "refused without a fix"
    return "problems" if problems.found else "read"


@settings(max_examples=150, deadline=None)
@given(junk=JUNK, place=st.integers(0, 3_000), kind=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_junk_in_a_good_file(junk: bytes, place: int, kind: str) -> None:
    good = {
        "csv": csv(GOOD),
        "tsv": csv(GOOD).replace(b",", b"\t"),
        "jsonl": jsonl(objects(GOOD)),
        "parquet": b"PAR1" * 99,
    }
    content = good[kind][:place] + junk + good[kind][place:]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"d.{kind}"
        path.write_bytes(content)
        strict, lenient = outcome(path, strict=True), outcome(path, strict=False)
        assert "refused without a fix" not in (strict, lenient)
        assert "refused without a fix" not in (strict, lenient)
        assert (strict == "read") == (lenient == "read")


@settings(max_examples=100, deadline=None)
@given(content=JUNK, kind=st.sampled_from(["csv", "tsv", "jsonl", "parquet"]))
def test_junk_alone(content: bytes, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"d.{kind}"
        path.write_bytes(content)
        assert outcome(path, strict=True) == "refused"
