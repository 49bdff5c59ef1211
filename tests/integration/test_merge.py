"""`finetune merge` on a real LoRA run: other precisions, compared, recorded, refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from finetune.errors import ConfigError, TrainingError
from finetune.files import sha256_file
from finetune.merge import merge
from tests.integration.test_launch_line import finetune, record_of
from tests.trainers import EXACT, write_reviews

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SETTINGS = ("adapter.rank=4", "train.max_updates=3", "train.lr=5e-3", "train.lr_warmup_updates=0")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("merge")
    reviews = write_reviews(folder / "reviews.csv", rows=120)
    options = [part for setting in (*EXACT, *SETTINGS) for part in ("--set", setting)]
    done = finetune("run", "bert_lora", "--data", reviews, *options, "--output", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_a_merged_model_is_the_adapter_on_its_base_rounded_once(run: Path) -> None:
    """Against plain peft and plain transformers; the same folder twice is refused."""
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = finetune("merge", run, "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    (found,) = record_of(run)["merged"]
    assert "logits differ from fp32 by at most" in done.stdout
    assert found["folder"] == str(run / "model-bfloat16")
    assert 0 < found["difference"] <= found["tolerance"] == 4 * found["rounding"]
    tokenizer = AutoTokenizer.from_pretrained(run / "model-bfloat16")
    texts = ["A gorgeous, witty, seductive movie.", "A dull, clumsy film.", "It has its moments."]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    base = AutoModelForSequenceClassification.from_pretrained(run / "base")
    whole = AutoModelForSequenceClassification.from_pretrained(run / "model-bfloat16").eval()
    assert whole.dtype == torch.bfloat16
    with torch.inference_mode():
        plain = base.eval()(**batch).logits.clone()
        live = PeftModel.from_pretrained(base, run / "adapter").eval()(**batch).logits
        merged = whole(**batch).logits.float()
    assert (merged - live).abs().max() <= 0.05 * live.abs().max()
    assert (plain - live).abs().max() > 0.1 * live.abs().max()
    exact = AutoModelForSequenceClassification.from_pretrained(run / "model").state_dict()
    for name, value in whole.state_dict().items():
        # model/ was merged by the run itself, and one rounding to fp32 may end on either side of one to bf16.
        assert torch.allclose(value.float(), exact[name].bfloat16().float(), rtol=2**-7, atol=0), name
    with pytest.raises(ConfigError, match="exists already"):
        merge(str(run), "bfloat16", None)


def test_what_can_not_be_merged_is_refused_and_leaves_no_folder(run: Path, tmp_path: Path) -> None:
    """A head that overflows float16, and a base that is not the run's."""
    from safetensors.torch import load_file, save_file

    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("checkpoints", "model-*"))
    path = copied / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    (head,) = (name for name in tensors if name.endswith("classifier.weight"))
    tensors[head] *= 1e6
    save_file(tensors, path, metadata={"format": "pt"})
    record = record_of(copied)
    with pytest.raises(TrainingError, match="is not what was trained: its logits differ"):
        merge(str(copied), "float16", str(tmp_path / "half"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
    assert record_of(copied) == record

    record["model"]["sha256"] = "0" * 64
    (copied / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="has other weights than when"):
        merge(str(copied), "float32", None)


def test_a_run_without_an_adapter_is_written_in_the_precision(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A record that says adapter=full and a model/ alone: what a run of bert_cls leaves."""
    copied = tmp_path / "run"
    shutil.copytree(run, copied, ignore=shutil.ignore_patterns("checkpoints", "model-*", "adapter", "base"))
    record = {name: value for name, value in record_of(copied).items() if name != "merged"}
    record["config"]["adapter"] = {"name": "full", "head_lr_ratio": 1.0}
    (copied / "run.json").write_text(json.dumps(record))
    assert merge(str(copied), "float32", str(tmp_path / "same")) == 0
    assert "has no adapter, so nothing is merged" in capsys.readouterr().out
    assert sha256_file(tmp_path / "same" / "model.safetensors") == sha256_file(copied / "model" / "model.safetensors")
    assert record_of(copied)["merged"][0]["difference"] == 0.0
