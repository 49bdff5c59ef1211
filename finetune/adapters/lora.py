"""LoRA and its kin: rsLoRA, DoRA, LoRA+, and the starts that take their directions from the weights."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import torch
from pydantic import Field

from finetune.adapters.nf4 import BLOCK, check_nf4, dequantize, quantize
from finetune.adapters.peft_adapter import PeftAdapter, fan_in_fan_out
from finetune.adapters.targets import check_patterns, check_rank, kind, pattern_value
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from finetune.task import Task

Positive = Annotated[int, Field(ge=1)]
# Buffers with the factors that PiSSA and OLoRA start from; as buffers they are in every checkpoint.
START_A, START_B = "start_A", "start_B"


class LoRA(PeftAdapter):
    """Low-rank updates B A beside frozen weights (arXiv:2106.09685)."""

    name: Literal["lora"] = "lora"
    rank: Positive = 8
    """Rank of each update."""
    alpha: Positive = 16
    """Updates are scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of each update."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank), so that larger ranks learn as fast (arXiv:2312.03732)."""
    dora: bool = False
    """Train magnitudes apart from directions (arXiv:2402.09353)."""
    init: Literal["default", "gaussian", "pissa", "olora"] = "default"
    """`pissa` and `olora` start from the weights' own directions, and leave the rest as the frozen base."""
    lr_ratio: Annotated[float, Field(gt=0.0)] = 1.0
    """Learning rate of B as a multiple of A's (LoRA+, arXiv:2402.12354; 16 is usual)."""
    quantize: Literal["nf4"] | None = None
    """`nf4` holds the frozen weights of the targets in 4 bits (QLoRA, arXiv:2305.14314), where bitsandbytes runs; the
    base that is saved has those weights."""
    rank_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Other ranks for some targets: {"regular expression of the name's end": rank}."""
    alpha_pattern: dict[str, Positive] = Field(default_factory=dict)
    """Other alphas for some targets."""

    kinds: ClassVar[tuple[str, ...]] = ("Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d")

    def peft_config(self, model: torch.nn.Module, task: Task, total_updates: int) -> Any:
        from peft import LoraConfig

        targets = self.found_targets(model, task)
        modules = {name: model.get_submodule(name) for name in targets}
        check_patterns(self.rank_pattern, targets, "adapter.rank_pattern")
        check_patterns(self.alpha_pattern, targets, "adapter.alpha_pattern")
        for name, module in modules.items():
            rank = pattern_value(self.rank_pattern, name, self.rank)
            check_rank({name: module}, rank, "adapter.rank" if rank == self.rank else "adapter.rank_pattern")
            if self.dropout and kind(module) == "Embedding":
                raise ConfigError(f"adapter.dropout is ignored by {name}, an Embedding.", "Leave one of them out.")
            groups = getattr(module, "groups", 1)
            if rank % groups:
                raise ConfigError(
                    f"adapter.rank={rank} is no multiple of the {groups} groups of the convolution {name}.",
                    "Leave that module out of adapter.targets.",
                )
        if self.init in ("pissa", "olora"):
            able = ("Linear", "Conv1D") if self.init == "pissa" else ("Linear",)
            for name, module in modules.items():
                if kind(module) not in able:
                    raise ConfigError(
                        f"adapter.init={self.init} can't start {name}, a {kind(module)}.",
                        f"It needs {' or '.join(able)}: choose adapter.targets accordingly, or adapter.init=default.",
                    )
        if self.quantize is not None:
            self._check_quantized(modules)
        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=targets,
            use_rslora=self.rslora,
            use_dora=self.dora,
            init_lora_weights=True if self.init == "default" else self.init,
            rank_pattern=dict(self.rank_pattern),
            alpha_pattern=dict(self.alpha_pattern),
            fan_in_fan_out=fan_in_fan_out(model, targets),
        )

    def _check_quantized(self, modules: dict[str, torch.nn.Module]) -> None:
        for name, module in modules.items():
            if kind(module) != "Linear" or cast(torch.Tensor, module.weight).numel() % BLOCK:
                what = f"a {kind(module)}" if kind(module) != "Linear" else f"whose weights are no multiple of {BLOCK}"
                raise ConfigError(
                    f"adapter.quantize={self.quantize} can't hold {name}, {what}.",
                    "Leave it out of adapter.targets, or leave adapter.quantize out.",
                )
        if self.dora or self.init in ("pissa", "olora"):
            other = "adapter.dora=true" if self.dora else f"adapter.init={self.init}"
            raise ConfigError(
                f"adapter.quantize={self.quantize} does not go with {other}, which starts from the whole weights.",
                "Leave one of them out.",
            )

    def check_machine(self) -> None:
        if self.quantize is not None:
            check_nf4()

    @property
    def keeps_base(self) -> bool:
        return self.quantize is not None

    def wrap(self, model: torch.nn.Module, task: Task, total_updates: int) -> torch.nn.Module:
        if self.quantize is not None:
            quantize(model, self.found_targets(model, task))
        wrapped = super().wrap(model, task, total_updates)
        if self.init in ("pissa", "olora"):
            for layer in _layers(wrapped):
                layer.register_buffer(START_A, layer.lora_A["default"].weight.detach().clone())
                layer.register_buffer(START_B, layer.lora_B["default"].weight.detach().clone())
        return wrapped

    def lr_scales(self, model: torch.nn.Module, task: Task) -> dict[str, float]:
        scales = super().lr_scales(model, task)
        if self.lr_ratio != 1.0:
            ours = (".lora_B.", ".lora_embedding_B.")
            scales.update({name: self.lr_ratio for name, _ in model.named_parameters() if any(b in name for b in ours)})
        return scales

    def undecayed(self, model: torch.nn.Module) -> set[str]:
        # A magnitude is a norm: decay would pull the pretrained weight itself towards 0.
        return {name for name, _ in model.named_parameters() if ".lora_magnitude_vector." in name}

    def save(self, model: Any, folder: Path, base: str, revision: str | None) -> bool:
        if self.init not in ("pissa", "olora"):
            return super().save(model, folder, base, revision)
        return super().save(_as_plain_lora(model), folder, base, revision)

    def base(self, model: Any) -> torch.nn.Module:
        if self.quantize is not None:
            return super().base(dequantize(copy.deepcopy(model)))
        if self.init not in ("pissa", "olora"):
            return super().base(model)
        whole = copy.deepcopy(model)
        with torch.no_grad():
            for layer in _layers(whole):
                layer.get_base_layer().weight += _start(layer)
        return super().base(whole)

    def plain(self, model: Any) -> torch.nn.Module:
        return super().plain(dequantize(model))

    def tolerance(self) -> float:
        """Reloading PiSSA and OLoRA adds and subtracts their start, which rounds."""
        return 1e-5 if self.init in ("pissa", "olora") else super().tolerance()


def _layers(model: torch.nn.Module) -> list[Any]:
    from peft.tuners.lora import LoraLayer

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def _start(layer: Any) -> torch.Tensor:
    """What was taken out of the layer's weight at the start, in that weight's own layout."""
    taken = layer.scaling["default"] * (getattr(layer, START_B) @ getattr(layer, START_A))
    return taken.T if layer.fan_in_fan_out else taken


def _as_plain_lora(model: Any) -> Any:
    """A copy whose update B A - B0 A0, of twice the rank, goes onto the pretrained weights as anybody has them."""
    model = copy.deepcopy(model)
    config = model.peft_config["default"]
    config.init_lora_weights = True
    config.r *= 2
    # With rsLoRA the scale is alpha / sqrt(rank).
    factor = math.sqrt(2.0) if config.use_rslora else 2
    config.lora_alpha *= factor
    config.rank_pattern = {key: 2 * rank for key, rank in config.rank_pattern.items()}
    config.alpha_pattern = {key: factor * alpha for key, alpha in config.alpha_pattern.items()}
    for layer in _layers(model):
        for factors, start, dim, sign in ((layer.lora_A, START_A, 0, 1), (layer.lora_B, START_B, 1, -1)):
            weight = factors["default"].weight
            weight.data = torch.cat([weight.data, sign * getattr(layer, start)], dim)
            delattr(layer, start)
    return model
