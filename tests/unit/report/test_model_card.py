"""The model card: read back by huggingface_hub, true to the record, safe with any label."""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from finetune.report.model_card import model_card, write_model_card

pytestmark = pytest.mark.unit


def test_the_hub_reads_the_metrics_back(record: dict[str, Any], tmp_path: Path) -> None:
    write_model_card(tmp_path, record)
    card = ModelCard.load(tmp_path / "README.md")
    results = {(result.metric_type, str(result.metric_args)): result for result in card.data.eval_results}
    assert results["accuracy", "None"].metric_value == 0.8421
    assert results["accuracy", "None"].dataset_split == "test"
    assert "0.8261 to 0.8581, n = 2121" in results["accuracy", "None"].metric_name
    assert results["f1", "{'average': 'macro'}"].metric_value == 0.8411
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == "transformers"
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_baselines_gains_classes_and_data_stand_in_it(record: dict[str, Any]) -> None:
    text = model_card(record)
    assert "| TF-IDF + logistic regression | 0.781 [0.765, 0.797] |" in text
    assert "| frozen-encoder probe | accuracy | +3.9 | +2.5 to +5.3 | < 0.001 | better |" in text
    assert "Against the strongest baseline (frozen-encoder probe) that is +3.9 [+2.5, +5.3] points" in text
    assert "| negative | 0.840 | 0.850 | 0.845 | 1,080 |" in text
    assert "7,436 train, 1,045 valid, 2,121 test" in text
    assert "3 rows with rating 0 dropped" in text
    assert "finetune run bert_cls --data movie_snippets --seed 0" in text
    assert "truncation=True, max_length=128" in text
    assert "None" not in text


@pytest.mark.parametrize(
    ("name", "is_hub_id"),
    [
        ("google-bert/bert-base-uncased", True),
        ("pypi:some-wheel==0.1.0/model#sha256=00", False),
        ("./models/mine", False),
        ("/models/mine", False),
        ("folder/reviews.csv", False),
        ("movie_snippets", False),
        ("a/b/c", False),
    ],
)
def test_only_hub_ids_become_hub_metadata(record: dict[str, Any], name: str, is_hub_id: bool) -> None:
    record["model"]["name"] = record["data"]["card"] = name
    data = ModelCard(model_card(record)).data
    assert data.base_model == (name if is_hub_id else None)
    assert data.datasets == ([name] if is_hub_id else None)


def test_a_folder_of_that_name_is_no_hub_id(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    record["model"]["name"] = "models/mine"
    assert ModelCard(model_card(record)).data.base_model is None


def test_picture_and_data_card_are_linked_where_the_run_has_them(record: dict[str, Any], tmp_path: Path) -> None:
    write_model_card(tmp_path, record)
    assert "](result.png)" not in (tmp_path / "README.md").read_text()
    assert "](data_card.md)" not in (tmp_path / "README.md").read_text()
    (tmp_path / "result.png").touch()
    (tmp_path / "data_card.md").touch()
    write_model_card(tmp_path, record)
    assert "](result.png)" in (tmp_path / "README.md").read_text()
    assert "[movie_snippets](data_card.md)" in (tmp_path / "README.md").read_text()


def test_a_label_of_any_kind_breaks_no_table(record: dict[str, Any]) -> None:
    label = "a|b\n<script>*_`{{ 7 * 7 }}"
    record["data"]["labels"][0] = record["per_class"]["test"][0]["label"] = label
    text = model_card(record)
    row = next(line for line in text.split("\n") if line.startswith("| a"))
    assert row == r"| a\|b \<script\>\*\_\`{{ 7 * 7 }} | 0.840 | 0.850 | 0.845 | 1,080 |".replace("7 * 7", r"7 \* 7")
    assert ModelCard(text).data.pipeline_tag == "text-classification"


def test_yaml_survives_any_data_name(record: dict[str, Any]) -> None:
    record["data"]["card"] = "---\nlicense: mit # : 评论"
    data = ModelCard(model_card(record)).data
    assert data.license is None
    assert data.eval_results[0].dataset_name == "---\nlicense: mit # : 评论"


def test_limits_follow_from_the_numbers(record: dict[str, Any]) -> None:
    record["per_class"]["test"][0].update(support=3, recall=0.0)
    record["metrics"]["test"]["ece"]["value"] = 0.12
    record["gains"]["frozen-encoder probe"].update(value=0.001, low=-0.01, high=0.012)
    record["gains"]["majority class"].update(value=-0.1, low=-0.12, high=-0.08)
    limits = model_card(record).partition("## Limits")[2]
    assert "1 of 2 classes have fewer than 30 test rows (negative)" in limits
    assert "Never found: negative." in limits
    assert "Its confidence is off by 0.120" in limits
    assert "can't be told apart from the baseline frozen-encoder probe" in limits
    assert "worse than the baseline majority class" in limits


def test_a_good_run_has_none_of_these_limits(record: dict[str, Any]) -> None:
    assert model_card(record).partition("## Limits")[2].count("\n- ") == 1


def test_a_failed_run_says_so_and_shows_no_way_to_use_it() -> None:
    text = model_card({"status": "failed", "recipe": {"name": "bert_cls"}, "metrics": {}})
    assert "did not finish (status: failed)" in text
    assert "never evaluated" in text
    assert "pipeline(" not in text
    assert ModelCard(text).data.eval_results is None


def test_results_on_valid_are_called_flattering(record: dict[str, Any]) -> None:
    del record["metrics"]["test"]
    assert "There was no test split" in model_card(record)


def test_an_interrupted_write_keeps_the_old_card(
    record: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "README.md").write_text("old")

    def no_space(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("finetune.files.os.replace", no_space)
    with pytest.raises(OSError, match="no space left"):
        write_model_card(tmp_path, record)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"README.md": "old"}
