"""QLoRA, where bitsandbytes runs: what is saved is what was trained, on weights of 4 bits; elsewhere it is refused."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from finetune.adapters import LoRA
from finetune.adapters.nf4 import NF4Linear
from finetune.cli import main
from finetune.data.batching import RowKey
from finetune.errors import ConfigError
from finetune.export import export, refuse_unequal
from tests.trainers import make_trainer

pytestmark = [
    pytest.mark.equivalence,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
QLORA = ("adapter=lora", "adapter.rank=4", "adapter.quantize=nf4", "train.lr=1e-3")


def test_without_bitsandbytes_it_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match="needs bitsandbytes, which is not installed"):
        LoRA(quantize="nf4").check_machine()
    options = ["run", "bert_lora", "--set", "adapter.quantize=nf4", "--data", str(tmp_path / "absent.csv")]
    assert main([*options, "--output", str(tmp_path / "run")]) == 2
    # The data are not looked at before.
    assert "needs bitsandbytes" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@needs_bitsandbytes
def test_layers_of_four_bits_compute_what_they_mean() -> None:
    """Against a plain layer with the same weights, gradients included; the weights are the nearest of 16 levels."""
    torch.manual_seed(0)
    linear = torch.nn.Linear(96, 64)
    packed, x = NF4Linear(linear), torch.randn(5, 96, requires_grad=True)
    y = packed(x)
    y.square().sum().backward()
    assert x.grad is not None
    theirs = x.detach().clone().requires_grad_(True)
    plain = packed.plain()(theirs)
    plain.square().sum().backward()
    assert torch.equal(y, plain)
    assert torch.equal(x.grad, theirs.grad)
    assert packed.codes.numel() == linear.weight.numel() // 2
    assert sum(1 for _ in packed.state_dict()) == 1  # the bias
    blocks = linear.weight.detach().reshape(-1, 64)
    scaled = blocks / blocks.abs().amax(1, keepdim=True)
    nearest = packed.levels[(scaled[:, :, None] - packed.levels).abs().argmin(-1)] * blocks.abs().amax(1, keepdim=True)
    # Rows of one block and a half: bitsandbytes alone would take the wrong scales. Halfway either level is right.
    assert torch.isclose(nearest.reshape(64, 96), packed.weight, atol=1e-6).float().mean() > 0.999


@needs_bitsandbytes
def test_what_is_saved_is_what_was_trained(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, *QLORA, "train.max_updates=6")
    held = [module for module in trainer.model.modules() if isinstance(module, NF4Linear)]
    assert len(held) == 6 * 6 + 1
    batch = trainer.task.collate(trainer.task.rows["valid"].__getitems__([RowKey(0, index) for index in range(8)]))

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits

    before = logits(trainer.model)
    trainer.fit()
    live = logits(trainer.model)
    assert (live - before).abs().max() > 1e-2
    check = export(trainer.task, trainer, tmp_path)["export_check"]
    refuse_unequal(check)
    assert check["parts"]["adapter"]["difference"] == 0.0
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), live)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert (logits(merged) - live).abs().max() <= 1e-5 * live.abs().max()
