"""The parts of chat tuning that are the same for every recipe: losses of answers, and answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from finetune.data.conversations import conversation, render
from finetune.language_modeling import TokenLosses, go_on

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from finetune.task import Batch


def answer_losses(losses: TokenLosses) -> Callable[[torch.nn.Module, Batch], torch.Tensor]:
    """(model, batch) to the summed loss of each row's targets, [rows, 1]: a Task's `outputs`."""

    def outputs(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return losses(model, batch["input_ids"], batch["targets"]).sum(1, keepdim=True)

    return outputs


def answerer(
    tokenizer: PreTrainedTokenizerBase, split: datasets.Dataset, count: int, tokens: int, seed: int
) -> Callable[[torch.nn.Module], list[dict[str, Any]]] | None:
    """A model to its own last answer in `count` held-out conversations, evenly spaced: a Task's `samples`.

    Each is {"prompt", "text", "expected", "ended"}: the last thing said before, what the model answers, what the data
    answers, and whether the model ended its answer by itself. None without any.
    """
    if not count:
        return None
    chosen = range(0, len(split), max(1, len(split) // count))[:count]

    def samples(model: torch.nn.Module) -> list[dict[str, Any]]:
        found = []
        for index in chosen:
            messages = conversation(split[index])
            last = max(number for number, message in enumerate(messages) if message["role"] == "assistant")
            text, ended = answer(model, tokenizer, messages[:last], tokens, seed)
            said = messages[last - 1]["content"] if last else ""
            found.append({"prompt": said, "text": text, "expected": messages[last]["content"], "ended": ended})
        return found

    return samples


def answer(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], tokens: int, seed: int
) -> tuple[str, bool]:
    """What the model answers to the messages, up to `tokens` sampled tokens, and whether it ended by itself."""
    text = render(tokenizer, messages, to_answer=True)
    ids_BT = tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"].long()
    written = go_on(model, tokenizer, ids_BT, tokens, (seed, "samples", text))
    ended = bool(written) and written[-1] == tokenizer.eos_token_id
    return str(tokenizer.decode(written, skip_special_tokens=True)), ended
