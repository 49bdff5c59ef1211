"""Byte pairs learnt from a text: text comes back, also after plain transformers loaded them; a recipe takes them."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from finetune.data.byte_pairs import FEWEST_TOKENS, byte_pair_tokenizer, learnt_tokenizer
from finetune.data.characters import END
from finetune.errors import ConfigError

pytestmark = pytest.mark.unit

TEXTS = ["the king said to the queen: the king's ring is there.\n", "there, there, said the queen; the ring!"] * 3


def test_round_trip_after_saving(tmp_path: Path) -> None:
    made = byte_pair_tokenizer(TEXTS, 300)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert FEWEST_TOKENS < len(loaded) == len(made) <= 300
    assert len(made("the queen")["input_ids"]) < len("the queen") / 2  # pairs were joined
    for text in (*TEXTS, "  Æ— never\tseen, 王 \u200d🙂\n\n"):
        ids = loaded(text)["input_ids"]
        assert ids == made(text)["input_ids"]
        assert loaded.decode(ids) == text
        assert loaded.eos_token_id not in ids
    assert loaded.eos_token == loaded.bos_token == END
    assert loaded.eos_token_id is not None


def test_the_same_text_gives_the_same_tokens_each_time() -> None:
    """Each process of a run learns them for itself."""
    text = Path(__file__).read_text("utf-8").splitlines(keepends=True)
    assert len({byte_pair_tokenizer(text, 600).backend_tokenizer.to_str() for _ in range(4)}) == 1


def test_characters_are_what_is_learnt_without_a_number() -> None:
    assert len(learnt_tokenizer(["abab"], None)) == 2 + 2
    assert len(learnt_tokenizer(["abab"], 400)) < 400  # the text has no more pairs
    with pytest.raises(ConfigError, match=r"model\.byte_pairs=256 is less than"):
        learnt_tokenizer(["abab"], 256)


def test_gpt2_scratch_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune.data.batching import RowKey
    from finetune.recipe import load_recipe, override

    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{TEXTS[0].strip()} {number} times.\n\n" for number in range(400)))
    loaded = load_recipe("gpt2_scratch")
    override(loaded, [f"data.source={text}", "data.test_share=0.2", "data.valid_share=0.2", "model.byte_pairs=280"])
    task = loaded.build()
    assert task.model.config.vocab_size == task.model.lm_head.weight.shape[0] <= 280
    rows = task.collate(task.rows["test"].__getitems__([RowKey(0, 0)]))
    # Some pairs are words by now, so a block of 64 holds more text than 64 characters.
    assert int(rows["input_ids"].max()) >= FEWEST_TOKENS
    assert task.loss_sum(task.model, rows).isfinite()
