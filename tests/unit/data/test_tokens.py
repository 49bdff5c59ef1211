"""Token ids that are kept equal what the tokenizer gives row by row, cut or not, one text or two; and are kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import datasets
import datasets.arrow_writer
import pytest

from finetune.data import tokens
from finetune.data.batching import RowKey
from tests.unit.data.test_mapped import mapped_mib

pytestmark = pytest.mark.unit

WORDS = ["a", "dull", "clumsy", "film", "funny", "warm", "and", "beautifully", "shot"]


@pytest.fixture
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.mark.parametrize("texts", [("text",), ("text", "text_pair")], ids=["one text", "two"])
@pytest.mark.parametrize("limit", [5, 8, 64])
def test_rows_are_what_the_tokenizer_gives(
    tokenizer: Any, texts: tuple[str, ...], limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(tokens, "CHUNK_ROWS", 3)
    columns = {
        name: [" ".join(WORDS[: 1 + (i * step) % 9]) for i in range(10)]
        for name, step in zip(texts, (2, 5), strict=False)
    }
    split = datasets.Dataset.from_dict({**columns, "label": list(range(10))})
    rows = tokens.tokenize(split, tokenizer, limit, texts)
    for i in range(10):
        row = [columns[name][i] for name in texts]
        expected = tokenizer(*row, truncation=True, max_length=limit)
        (found,) = rows.__getitems__([RowKey(epoch=0, index=i)])
        assert {"input_ids", "labels"} <= set(found) <= {"input_ids", "token_type_ids", "labels"}
        assert ("token_type_ids" in found) == (len(texts) == 2)
        for name in set(found) - {"labels"}:
            assert found[name].tolist() == expected[name]
        assert bool(rows.truncated[i]) == (len(tokenizer(*row)["input_ids"]) > limit)
        assert found["labels"] == i
    assert rows.truncated.any() == (limit < 64)

    monkeypatch.setattr(tokens, "_coded", None)  # from the cache: nothing is encoded again
    again = tokens.tokenize(split, tokenizer, limit, texts)
    assert again.columns["input_ids"].tolist() == rows.columns["input_ids"].tolist()


def test_what_the_last_call_asked_for_is_left_alone_and_is_no_part_of_the_key(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    split = datasets.Dataset.from_dict({"text": WORDS, "label": list(range(len(WORDS)))})
    plain = tokens._key(split, tokenizer, 8, ("text",))
    tokenizer(WORDS[0], truncation=True, max_length=3, stride=1, padding="max_length", truncation_side="left")
    backend = tokenizer.backend_tokenizer
    before = backend.to_str()
    assert '"truncation":null' not in before
    assert '"padding":null' not in before
    assert tokens._key(split, tokenizer, 8, ("text",)) == plain
    assert backend.to_str() == before
    tokenizer.add_tokens(["anew"])
    assert tokens._key(split, tokenizer, 8, ("text",)) != plain


def test_rows_are_read_apart_where_they_are_a_file_and_as_they_are_elsewhere(tmp_path: Path) -> None:
    texts = [f"{number} {'long ' * 2000}" for number in range(4000)]  # 40 MB
    writer = datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "rows.arrow"))
    writer.write_batch({"text": texts})
    writer.finalize()
    whole = datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))
    others = [
        whole.select(range(7)), whole.shuffle(seed=1), whole.rename_column("text", "other"),
        whole.map(keep_in_memory=True), datasets.Dataset.from_dict({"text": texts[:3]}),
        datasets.concatenate_datasets([whole, whole]),
    ]  # fmt: skip
    for other in others:
        assert tokens._apart(other)[:5] == other[:5]
        assert len(tokens._apart(other)) == len(other)
    varied = whole.with_transform(lambda rows: {"text": [text[:3] for text in rows["text"]]})
    assert tokens._apart(varied)[:5] == varied[:5]
    made = varied.map(lambda row: {"text": row["text"] + "!"}, cache_file_name=str(tmp_path / "made.arrow"))
    assert tokens._apart(made)[:5] == made[:5]
    apart = tokens._apart(whole)
    assert apart is not whole
    assert apart[:]["text"] == texts
    if sys.platform == "linux":
        before = mapped_mib()
        del apart
        assert mapped_mib() < before - 30
        (tmp_path / "rows.arrow").unlink()  # still mapped
        assert tokens._apart(whole)[:2] == {"text": texts[:2]}


def test_the_cache_is_that_of_rows_that_are_read_as_they_are(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    writer = datasets.arrow_writer.ArrowWriter(path=str(tmp_path / "rows.arrow"))
    writer.write_batch({"text": WORDS, "label": list(range(len(WORDS)))})
    writer.finalize()
    split = datasets.Dataset.from_file(str(tmp_path / "rows.arrow"))
    rows = tokens.tokenize(split, tokenizer, 8)
    monkeypatch.setattr(tokens, "_coded", None)  # from the cache: nothing is encoded again
    again = tokens.tokenize(datasets.Dataset.from_dict(split[:]), tokenizer, 8)
    assert again.token_ids.tolist() == rows.token_ids.tolist()
