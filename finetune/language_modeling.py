"""The parts of a causal language model's task that are the same for every recipe: rows, losses, samples, files."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional as F

from finetune.data.blocks import Blocks, pack, pad_blocks
from finetune.data.tokens import tokenize
from finetune.evaluation.predict import Predict, predict_rows
from finetune.models import save_tokenizer
from finetune.objectives import token_losses
from finetune.randomness import seed_torch

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase

    from finetune.data.loader import LoadedData
    from finetune.evaluation.baselines import Baseline
    from finetune.task import Batch, Collate, Rows

TokenLosses = Callable[[torch.nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


def pack_splits(
    data: LoadedData, tokenizer: PreTrainedTokenizerBase, block_tokens: int, across: bool
) -> tuple[dict[str, Blocks], dict[str, np.ndarray]]:
    """Blocks of each split, and the UTF-8 bytes of each of its documents, [documents].

    A document's first token is predicted from the token that its tokenizer puts in front (Llama's <s>), else from the
    end token, as in GPT-2's pretraining, where documents follow each other. Passages of one text have no ends between.
    """
    own_start = tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id is not None
    before = None if data.passages else tokenizer.bos_token_id if own_start else tokenizer.eos_token_id
    end = None if data.passages else tokenizer.eos_token_id
    rows, text_bytes = {}, {}
    for name, split in data.splits.items():
        tokens = tokenize(split, tokenizer, sys.maxsize, label=None)
        rows[name] = pack(tokens, block_tokens, before=before, end=end, across=across or data.passages)
        text_bytes[name] = np.array([len(text.encode()) for text in split["text"]])
    return rows, text_bytes


def usable_losses(model: torch.nn.Module) -> tuple[TokenLosses, list[str]]:
    """`token_losses` where it equals the model's own logits, else cross-entropy of whole logits, and a note saying so.

    Some models change what their head returns (Gemma 2 caps it, Cohere scales it), which chunks would miss.
    """
    vocabulary = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    ids = torch.arange(8)[None, :] % vocabulary
    training = model.training
    model.eval()
    with torch.inference_mode():
        same = torch.allclose(
            token_losses(model, ids, ids.roll(-1, 1)), _whole_losses(model, ids, ids.roll(-1, 1)), rtol=1e-3, atol=1e-3
        )
    model.train(training)
    if same:
        return token_losses, []
    return _whole_losses, ["the model changes its head's logits, so they are computed whole: it takes more memory"]


def _whole_losses(model: torch.nn.Module, input_ids_BT: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    logits_BTV = model(input_ids=input_ids_BT, use_cache=False).logits[:, -targets_BT.shape[1] :]
    losses = F.cross_entropy(
        logits_BTV.float().flatten(0, 1), targets_BT.flatten(), ignore_index=-100, reduction="none"
    )
    return losses.view(targets_BT.shape)


def losses_by_position(losses: TokenLosses, block_tokens: int) -> Callable[[torch.nn.Module, Batch], torch.Tensor]:
    """(model, batch) to the loss of every target, [rows, block_tokens], 0 beyond a row's end: a Task's `outputs`."""

    def outputs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        found_BT = losses(model, batch["input_ids"], batch["targets"])
        return F.pad(found_BT, (0, block_tokens - found_BT.shape[1]))

    return outputs


def probe_logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Logits of a corner of a batch, [at most 8 rows, at most 64 tokens, vocabulary]: all would be gigabytes."""
    return model(input_ids=batch["input_ids"][:8, :64], use_cache=False).logits


def before_training(
    name: str,
    model: torch.nn.Module,
    rows: Rows,
    outputs: Callable[[torch.nn.Module, Batch], torch.Tensor],
    collate: Collate = pad_blocks,
) -> Callable[[Accelerator, Predict], list[Baseline]]:
    """The model as it came, on the test rows in fp32, as the exported one is judged: a Task's `baselines`."""

    def compute(accelerator: Accelerator, predict: Predict = predict_rows) -> list[Baseline]:
        from finetune.evaluation.baselines import Baseline

        model.to(accelerator.device)
        found = predict(model, rows, collate, outputs, accelerator, name)
        return [Baseline(name, found.astype(np.float64))] if accelerator.is_main_process else []

    return compute


def sampler(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], tokens: int, seed: int
) -> Callable[[torch.nn.Module], list[dict[str, Any]]] | None:
    """A model to what it writes after each prompt: a Task's `samples`. None without prompts or tokens."""
    if not prompts or not tokens:
        return None

    def samples(model: torch.nn.Module) -> list[dict[str, Any]]:
        return [{"prompt": prompt, "text": generate(model, tokenizer, prompt, tokens, seed)} for prompt in prompts]

    return samples


def generate(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, tokens: int, seed: int) -> str:
    """What the model writes after a prompt: up to `tokens` sampled tokens, the same for the same seed."""
    ids_BT = tokenizer(prompt, return_tensors="pt")["input_ids"].long()
    written = go_on(model, tokenizer, ids_BT, tokens, (seed, "samples", prompt))
    return str(tokenizer.decode(written, skip_special_tokens=True))


def go_on(
    model: Any, tokenizer: PreTrainedTokenizerBase, ids_BT: torch.Tensor, tokens: int, seed: tuple[int, str, str]
) -> list[int]:
    """Up to `tokens` token ids that the model writes after ids_BT, [1, T]; the end token is the last, if it came.

    Sampled at temperature 0.8 among the 50 likeliest tokens: without chance small models repeat themselves, and with
    all tokens they stumble. When the model's context is full, the later half of it stays and writing goes on.
    """
    training = model.training
    model.eval()
    if not ids_BT.numel():
        ids_BT = torch.tensor([[tokenizer.bos_token_id or tokenizer.eos_token_id or 0]])
    room = getattr(model.config, "max_position_embeddings", None) or ids_BT.shape[1] + tokens
    # Virtual tokens of prompt and prefix tuning take up positions of their own.
    room -= getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", 0)
    end = tokenizer.eos_token_id
    written: list[int] = []
    seed_torch(*seed)
    with torch.inference_mode():
        while len(written) < tokens and (not written or written[-1] != end):
            # The whole prompt when it leaves room, else what came last.
            context_BT = ids_BT if ids_BT.shape[1] < room else ids_BT[:, -max(1, room // 2) :]
            context_BT = context_BT.to(next(model.parameters()).device)
            with warnings.catch_warnings():
                # PEFT says it of prompt tuning at each token; the positions that the model counts itself are right.
                warnings.filterwarnings("ignore", message="Position ids are not supported")
                out_BT = model.generate(
                    context_BT,
                    attention_mask=torch.ones_like(context_BT),
                    do_sample=True,
                    temperature=0.8,
                    top_k=min(50, model.config.vocab_size),
                    max_new_tokens=min(tokens - len(written), room - context_BT.shape[1]),
                    pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end,
                )
            new = out_BT[:, context_BT.shape[1] :].cpu()
            written += new[0].tolist()
            ids_BT = torch.cat([ids_BT, new], dim=1)
    model.train(training)
    return written


def save_language_model(tokenizer: PreTrainedTokenizerBase) -> Callable[[torch.nn.Module, Path], None]:
    """A function that writes model, tokenizer and configuration as plain `transformers` reads them."""

    def save(model: Any, folder: Path) -> None:
        model.save_pretrained(folder, safe_serialization=True)
        save_tokenizer(tokenizer, folder)

    return save


def document_notes(rows: Mapping[str, Blocks]) -> list[str]:
    """How many documents and tokens each split has, beside its blocks."""
    counts = (
        f"{name} {len(some.document_ends):,} with {int(some.targets.sum()):,} tokens" for name, some in rows.items()
    )
    return ["documents: " + ", ".join(counts)]
