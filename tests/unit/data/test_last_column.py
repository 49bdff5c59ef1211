"""Files whose last column is the rest of the line, as published sentence sets are written: `4 a stirring film`."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.data.file_kinds import Format
from finetune.data.problems import Problems
from finetune.data.readers import open_table
from finetune.errors import DataError

pytestmark = pytest.mark.unit


def form(**more: object) -> Format:
    given = {"kind": "csv", "delimiter": " ", "names": ["stars", "text"], "quoting": False, "last_takes_rest": True}
    return Format.model_validate({**given, **more})


def test_the_last_column_keeps_its_delimiters(tmp_path: Path) -> None:
    path = tmp_path / "some.train"
    path.write_text('4 a stirring , "funny" film\n\n0 dull\n1\n', "utf-8")
    problems = Problems(strict=False)
    rows = list(open_table(path, form()).rows(["text", "stars"], problems))
    assert rows == [(1, ['a stirring , "funny" film', "4"]), (3, ["dull", "0"])]
    assert "line 4: 1 field, but 2 columns" in str(problems.found["ragged rows"].first[0])


@pytest.mark.parametrize("more", [{"names": None}, {"quoting": True}])
def test_it_needs_names_and_no_quotes(tmp_path: Path, more: dict[str, object]) -> None:
    path = tmp_path / "some.train"
    path.write_text("4 a film\n", "utf-8")
    with pytest.raises(DataError, match="last_takes_rest goes with"):
        open_table(path, form(**more))
