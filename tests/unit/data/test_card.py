"""Data cards: the hub's reader reads them, and a card that is written loads the rows that it was written for."""

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard
from toy_data import GOOD, PLAIN, card, csv, load, put

from finetune.config import TextClassificationData
from finetune.data.card import card_names, list_cards, load_card
from finetune.data.card_draft import draft_card, write_card
from finetune.errors import DataError

pytestmark = pytest.mark.unit

SHIPPED = [
    "digits",
    "grimm_tales",
    "movie_dialogues",
    "movie_snippets",
    "newsgroups_20",
    "reuters_r52",
    "reuters_r8",
    "sms_spam",
]
ROLES = {"text": None, "label": None}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_the_shipped_cards() -> None:
    assert [shipped.name for shipped in list_cards()] == card_names() == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_card_is_a_hub_card_with_prose(name: str) -> None:
    shipped = load_card(name)
    by_hub = DatasetCard.load(shipped.path)
    assert by_hub.data.license == shipped.hub["license"]
    assert by_hub.data.language == ["en"]
    assert "finetune" in by_hub.data.to_dict()
    for heading in ("Where it is from", "What it is for", "What not to use it for", "Splits"):
        assert f"## {heading}\n" in shipped.text
    block = shipped.block
    assert block.known_issues
    assert list(block.label_counts) == block.labels
    assert set(block.rows) == {"train", "valid", "test"}
    for split, rows in block.rows.items() if block.labels else ():
        assert sum(counts[split] for counts in block.label_counts.values()) == rows
    assert set(block.source.file_hashes) == {Path(file).name for file in block.source.files.values()}


def test_hub_keys_are_kept() -> None:
    shipped = load_card("movie_snippets")
    assert shipped.hub["tags"] == ["sentiment", "movie reviews"]
    assert shipped.title == "Movie review snippets with human sentiment ratings"


def test_an_unknown_key_outside_the_block_is_kept(tmp_path: Path) -> None:
    put({"c.md": card(PLAIN, "license: mit\nlanguage: [en]\nanything: 1\n")})(tmp_path)
    assert load_card("c.md").hub == {"license": "mit", "language": ["en"], "anything": 1}


def test_integer_keys_of_a_rule_are_text() -> None:
    assert load_card("sms_spam").block.label_rule.map == {"0": "ham", "1": "spam"}


@pytest.mark.parametrize("folder", [".", "cards", "a/b"])
@pytest.mark.parametrize("source", ["own/d.csv", "own/f", "own/one"])
def test_a_written_card_loads_the_same_rows(tmp_path: Path, source: str, folder: str) -> None:
    put({"own/d.csv": csv(GOOD), "own/f/train.csv": csv(GOOD), "own/f/test.csv": csv(GOOD[:60])})(tmp_path)
    put({"own/one/anything.csv": csv(GOOD)})(tmp_path)
    out = Path(folder) / "toy.md"
    write_card(draft_card(TextClassificationData(source=source), ROLES, out, "mit", "en"), out)
    by_file, by_card = load(source), load(str(out))
    assert by_card.sha256 == by_file.sha256
    assert by_card.card is not None
    assert by_card.card.block.rows == {split: len(rows) for split, rows in by_file.splits.items()}
    assert DatasetCard.load(out).data.license == "mit"


def test_a_card_is_not_replaced(tmp_path: Path) -> None:
    put({"c.md": b"mine"})(tmp_path)
    with pytest.raises(DataError, match="exists already"):
        write_card("x", tmp_path / "c.md")
    assert (tmp_path / "c.md").read_bytes() == b"mine"
    with pytest.raises(DataError, match="no name for a card"):
        write_card("x", tmp_path / "card.txt")


def test_a_shipped_card_needs_no_second_one() -> None:
    for source in ("sms_spam", str(load_card("sms_spam").path)):
        with pytest.raises(DataError, match="has a card already"):
            draft_card(TextClassificationData(source=source), ROLES, Path("x.md"), "mit", "en")
