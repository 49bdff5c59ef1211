"""Every published table is what its committed records say, within the tolerances of its references."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from finetune.bench.table import tables_folder
from finetune.cli import main

pytestmark = pytest.mark.unit

PUBLISHED = sorted(path.stem for path in (tables_folder() / "results").glob("*.md"))


def test_some_are_published() -> None:
    assert "mteb_probe" in PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_documents_are_those_of_the_records(name: str) -> None:
    assert main(["bench", "check", name]) == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_changed_digit_is_found(name: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    shutil.copytree(tables_folder() / "results", results)
    document = results / f"{name}.md"
    text = document.read_text("utf-8")
    digit = next(index for index, sign in enumerate(text) if sign.isdigit() and text[index - 1] == ".")
    document.write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :], "utf-8")
    assert main(["bench", "check", name, "--results", str(results)]) == 1
