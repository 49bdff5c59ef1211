"""Useful work: the matrix products that the rows need, against what `torch.mm` does on the same shapes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from finetune.hardware import choose_precision
from finetune.low_rank import is_plain

REPEATS = 5


class Products:
    """Notes every product of a linear layer while the model is warming up.

    Attributes:
        calls: (rows, inputs, outputs, input has a gradient, weight has one) and how often.
        rows: how many each layer saw.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.calls: Counter[tuple[int, int, int, bool, bool]] = Counter()
        self.rows: Counter[torch.nn.Module] = Counter()
        self.model = model
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self.handles = [module.register_forward_hook(self._note) for module in linear]
        # `train.fast_lora` computes such a layer's products without calling its parts.
        adapted = [module for module in model.modules() if is_plain(module)]
        self.handles += [module.register_forward_hook(self._note_adapted) for module in adapted]
        self.called: set[torch.nn.Module] = set()

    def _note(self, module: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        self.called.add(module)
        if torch.is_grad_enabled():
            self._count(module, inputs[0].numel() // inputs[0].shape[-1], inputs[0].requires_grad)

    def _note_adapted(self, layer: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        if layer.base_layer in self.called:
            self.called.discard(layer.base_layer)  # its parts were called, and noted
        elif torch.is_grad_enabled():
            rows, name = inputs[0].numel() // inputs[0].shape[-1], layer.active_adapters[0]
            self._count(layer.base_layer, rows, inputs[0].requires_grad)
            self._count(layer.lora_A[name], rows, inputs[0].requires_grad)
            self._count(layer.lora_B[name], rows, True)

    def _count(self, module: Any, rows: int, to_input: bool) -> None:
        self.rows[module] += rows
        self.calls[rows, module.in_features, module.out_features, to_input, module.weight.requires_grad] += 1

    def stop(self) -> None:
        """No more notes: what follows is timed."""
        for handle in self.handles:
            handle.remove()

    def useful(
        self, tokens: int, lengths: Sequence[int], seconds: float, one_token_layers: int = 0
    ) -> dict[str, float]:
        """GFLOP/s of useful work, of `torch.mm` in bf16 (fp32 where that is computed in), and their ratio.

        Useful are the products of linear layers and of attention for real tokens: padding, masks and everything else
        take time and count nothing. A product is counted forward, and backward once for each gradient that is needed.

        Args:
            tokens: real tokens of the timed updates.
            lengths: tokens of each of their rows.
            seconds: the time of those updates.
            one_token_layers: layers that compute a row's first token only (`train.skip_unread`).
        """
        # The layer that sees the most rows sees every token, padding included.
        padded = max(self.rows.values())
        flop = sum(2.0 * rows * i * o * (1 + x + w) * count for (rows, i, o, x, w), count in self.calls.items())
        useful = flop / padded * tokens + sum(
            _attention_flop(self.model, length, one_token_layers) for length in lengths
        )
        reached = self._mm_gflops()
        rate = useful / seconds / 1e9
        return {"useful_gflops": rate, "mm_gflops": reached, "share": rate / reached}

    def _mm_gflops(self) -> float:
        """Rate of `torch.mm` over all products that were noted, each forward and backward."""
        low = torch.bfloat16 if choose_precision("auto") == "bf16" else torch.float32
        flop = spent = 0.0
        generator = torch.Generator().manual_seed(0)
        for (rows, i, o, x, w), count in self.calls.items():
            if i < 64 or o < 64 or rows < 64:
                continue  # heads and ranks: next to no work, and no rate to go by
            a, b = (torch.randn(shape, generator=generator).to(low) for shape in ((rows, i), (o, i)))
            g = torch.randn(rows, o, generator=generator).to(low)
            pairs = [(a, b.t()), *([(g, b)] if x else []), *([(g.t(), a)] if w else [])]
            for one, other in pairs:
                torch.mm(one, other)
                taken = []
                for _ in range(REPEATS):
                    started = time.perf_counter()
                    torch.mm(one, other)
                    taken.append(time.perf_counter() - started)
                # The rate that it reaches: means were 202, 283 and 379 GFLOP/s in three runs of one row.
                spent += min(taken) * count
                flop += 2.0 * rows * i * o * count
        return flop / spent / 1e9


def _attention_flop(model: Any, length: int, one_token_layers: int) -> float:
    """Both products of attention over a row, forward and backward: causal attention needs half of them."""
    config = model.config
    heads = config.num_attention_heads
    width = (getattr(config, "head_dim", None) or config.hidden_size // heads) * heads
    queries = (config.num_hidden_layers - one_token_layers) * length + one_token_layers
    full = 12.0 * queries * width * length
    return full if config.model_type == "bert" else full / 2
