"""BERT recipes: two processes equal one, resumed runs equal whole ones to the bit, copies equal the built-in."""

from __future__ import annotations

import pytest

from tests.matrix.cases import DATA, NEED_DATA, Case
from tests.matrix.sample import sample_of, verdicts_of

pytestmark = pytest.mark.integration

CASES = [
    case
    for case in sample_of("bert_cls", "bert_pair", "bert_ner", "bert_mlm", "few_shot_cls")
    if case.base not in NEED_DATA or (DATA / "glue").is_dir()
]


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return verdicts_of(CASES, tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_changes_with_processes_stops_and_copies(verdicts: dict[str, list[str]], case: Case) -> None:
    assert verdicts[case.name] == []


@pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="FINETUNE_DATA names no folder with glue, wnut17")
def test_recipes_without_data_of_their_own_are_among_them() -> None:
    assert {case.base for case in CASES} >= set(NEED_DATA)
