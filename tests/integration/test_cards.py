"""Each shipped card loads from its wheel, and every number that it states is what is measured."""

import pytest

from finetune.config import TextClassificationData
from finetune.data.card import card_names, load_card
from finetune.data.checks import check_data, measure
from finetune.data.loader import load_data
from finetune.language_settings import PlainTextData

pytestmark = pytest.mark.integration

LABELS = {"movie_snippets": 2, "newsgroups_20": 20, "reuters_r52": 52, "reuters_r8": 8, "sms_spam": 2}
# The rows that a run sees: a change here means that no published number of this project holds any more.
SHA256 = {
    "movie_snippets": "8811b645b4194eac61544489537950cf684363b518f3144963501780af116a1a",
    "newsgroups_20": "5a31adad71a599f00c42852f4f92439d3ea19df3a77ef6e4cab62b326a68011c",
    "reuters_r52": "0363ae6dc0f7f54345fdb1c61dcff9b3aeecde854429b72921bedd164a9f0e60",
    "reuters_r8": "a7611cb8a6f88bdd34126bda5add855bc0a17ca0dd46f7b90bba7e1d6a6208b5",
    "sms_spam": "5aeab187d58df7457ec6426f20f837c4a4215327b155585511f0b1c82a49b530",
}


TEXTS = {
    "grimm_tales": "4c6dccdfc434584a80579b5fdf34faa3c3309ff7cb122e965573aa62029405d6",
    "movie_dialogues": "00afeef3ce009af74e6e7f63b0ea3623637ea29cc49e059b905d9b97fe0c3f34",
}


IMAGES = {"digits"}  # its numbers are held by tests/unit/data/test_image_loader.py, since nothing is fetched


@pytest.mark.parametrize("name", sorted(TEXTS))
def test_numbers_of_a_card_of_plain_text(name: str) -> None:
    texts = [role for role in load_card(name).block.columns if role != "id"]
    data = load_data(PlainTextData(source=name), dict.fromkeys(texts))
    assert data.card is not None
    block = data.card.block
    measured = measure(data.splits, data.labels)
    assert (data.labels, block.labels, measured.label_counts) == ((), [], {})
    assert measured.rows == block.rows
    assert measured.duplicates == block.duplicates
    assert measured.leaks == block.leaks
    assert sum(int(note.split()[0]) for note in data.notes if "were left out" in note) == block.dropped
    assert data.sha256 == TEXTS[name]


@pytest.mark.parametrize("name", sorted(LABELS))
def test_numbers_of_a_shipped_card(name: str) -> None:
    assert card_names() == sorted([*LABELS, *TEXTS, *IMAGES])
    data = load_data(TextClassificationData(source=name), {"text": None, "label": None})
    assert data.card is not None
    block = data.card.block
    measured = measure(data.splits, data.labels)
    assert data.labels == tuple(block.labels)
    assert len(data.labels) == LABELS[name]
    assert measured.rows == block.rows
    assert measured.label_counts == block.label_counts
    assert measured.duplicates == block.duplicates
    assert measured.leaks == block.leaks
    left_out = [int(note.split()[0]) for note in data.notes if "were left out" in note]
    assert sum(left_out) == block.dropped
    assert all(counts["train"] >= 1 for counts in measured.label_counts.values())
    assert data.sha256 == SHA256[name]


def test_published_sizes() -> None:
    """Train and test sizes of Cachopo's files, as the TextGCN paper has them (20NG: without 25 empty messages)."""
    for name, train, test in (
        ("reuters_r8", 5_485, 2_189),
        ("reuters_r52", 6_532, 2_568),
        ("newsgroups_20", 11_293, 7_528),
    ):
        data = load_data(TextClassificationData(source=name), {"text": None, "label": None})
        assert len(data.splits["train"]) + len(data.splits["valid"]) == train
        assert len(data.splits["test"]) == test


def test_check_sees_the_messages_that_swallowed_others() -> None:
    report = check_data(TextClassificationData(source="sms_spam"), {"text": None, "label": None})
    assert report.problems == {}
    assert report.lengths.percentiles["max"] > 1_000
    assert any(note.startswith("8 texts") and "swallowed" in note for note in report.notes)
