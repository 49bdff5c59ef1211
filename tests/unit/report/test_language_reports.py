"""Table, card and picture of a language model's run: lower is better, documents, samples."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune.report.model_card import model_card
from finetune.report.picture import result_picture
from finetune.report.summary import summary_table, text_width

pytestmark = pytest.mark.unit


def scores(perplexity: float) -> dict[str, Any]:
    return {
        "perplexity": {"value": perplexity, "low": perplexity - 1, "high": perplexity + 1, "n": 12},
        "bits_per_byte": {"value": 1.05, "low": 1.01, "high": 1.09, "n": 12},
        "loss": {"value": 2.9, "low": 2.8, "high": 3.0, "n": 12},
    }


@pytest.fixture
def language_record(record: dict[str, Any]) -> dict[str, Any]:
    gain = {"metric": "perplexity_reduction", "value": 0.26, "low": 0.22, "high": 0.3, "n": 12, "p": 0.0005}
    for key in ("per_class", "confusion"):
        del record[key]
    record["config"]["objective"] = {"prompts": ['The "king" said']}
    return {
        **record,
        "task": "text-generation",
        "data": {**record["data"], "card": "grimm_tales", "labels": []},
        "metrics": {"valid": scores(19.0), "test": scores(18.5)},
        "baselines": {"before fine-tuning": scores(25.0)},
        "gains": {"before fine-tuning": {**gain, "test": "Wilcoxon"}},
        "samples": [
            {"prompt": "The king", "before": "is a <b>chess</b> piece. " * 40, "after": "said: | *go*\n\nhome"}
        ],
    }


def test_table(language_record: dict[str, Any]) -> None:
    lines = summary_table(language_record).split("\n")
    assert lines[:7] == [
        "grimm_tales test, 12 documents; 95 % intervals in brackets",
        "                              perplexity             bits per byte",
        "fine-tuned                    18.5 [17.5, 19.5]      1.050 [1.010, 1.090]",
        "before fine-tuning            25.0 [24.0, 26.0]      1.050 [1.010, 1.090]",
        "",
        "fine-tuned against            % lower perplexity             p         so it is",
        "before fine-tuning            +26.0 [+22.0, +30.0]           < 0.001   better",
    ]
    assert lines[8].startswith("prompt  The king")
    assert lines[9].startswith("before  is a <b>chess")
    assert lines[11].endswith(" …")
    assert lines[12] == "after   said: | *go*  home"
    assert max(text_width(line) for line in lines) <= 100


def test_card(language_record: dict[str, Any]) -> None:
    text = model_card(language_record)
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-generation"
    assert "On 12 test documents its perplexity is 18.500" in text
    assert "that is +26.0 [+22.0, +30.0] % lower perplexity, paired over the same documents: better." in text
    assert 'generate = pipeline("text-generation", model="model")' in text
    assert 'generate("The \\"king\\" said", max_new_tokens=60)' in text
    assert "p (Wilcoxon)" in text
    assert "McNemar" not in text
    assert "Macro" not in text
    assert "> **before**: The king**|** is a \\<b\\>chess" in text
    assert "Labels" not in text


def test_picture(language_record: dict[str, Any], tmp_path: Path) -> None:
    history: list[dict[str, Any]] = [{"update": update, "loss": 3.0, "rows": update} for update in range(1, 9)]
    history.append({"update": 8, "valid": {"perplexity": 19.0, "bits_per_byte": 1.05}})
    result_picture(language_record, tmp_path / "result.svg", history)
    drawn = (tmp_path / "result.svg").read_text()
    assert "lower is better" in drawn
    assert "% lower perplexity than before fine-tuning" in drawn
