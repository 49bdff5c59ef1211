"""The Python lines of a model card run as they stand, beside a saved model, without this project."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import transformers

from finetune.report.model_card import write_model_card

pytestmark = pytest.mark.integration


def test_the_cards_code_prints_a_prediction(tmp_path: Path) -> None:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "your", "text", "here", "."]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        id2label={0: "bad", 1: "good"},
        label2id={"bad": 0, "good": 1},
    )
    tokenizer.save_pretrained(tmp_path / "model")
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "model")
    score = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    record = {"config": {"data": {"max_tokens": 16}}, "metrics": {"test": {"accuracy": score}}}
    write_model_card(tmp_path, record)

    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"\[\{'label': '(bad|good)', 'score': 0\.\d+\}\]", done.stdout)
