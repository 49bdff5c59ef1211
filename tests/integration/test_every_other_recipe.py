"""GPT-2 and ResNet recipes: two processes equal one, resumed runs equal whole ones to the bit, copies the built-in."""

from __future__ import annotations

import pytest

from finetune.recipe_files import recipe_names
from tests.matrix.cases import ADAPTERS, Case
from tests.matrix.sample import SAMPLE, sample_of, verdicts_of

pytestmark = pytest.mark.integration

CASES = sample_of("gpt2_scratch", "gpt2_clm", "gpt2_sft", "resnet_img", "resnet_pretrain")


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return verdicts_of(CASES, tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_changes_with_processes_stops_and_copies(verdicts: dict[str, list[str]], case: Case) -> None:
    assert verdicts[case.name] == []


def test_the_sample_has_every_recipe_and_adapter() -> None:
    """A new recipe takes its place in tests/matrix/cases.py."""
    assert {case.recipe for case in SAMPLE if case.copied} == set(recipe_names())
    assert {case.adapter for case in SAMPLE} == set(ADAPTERS)
