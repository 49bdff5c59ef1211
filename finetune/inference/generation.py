"""`finetune predict` for language models: what they write after a text, or answer to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.chat import answer
from finetune.data.sources import resolve_model
from finetune.errors import ConfigError
from finetune.export import BASE
from finetune.inference.exported import DAMAGED, loaded, own_accelerator
from finetune.language_modeling import generate

NEW_TOKENS = 100


class TextGenerator:
    """A run's exported language model, in fp32: what it goes on with after a text, sampled with the run's seed.

    Raises:
        ConfigError: the model can't be loaded.
    """

    added: tuple[str, ...] = ("generated",)

    def __init__(self, run: Path, record: dict[str, Any], tokens: int | None = None) -> None:
        self.tokens, self.seed = tokens or NEW_TOKENS, record["seed"]
        data = record["config"].get("data", {})
        # A run on conversations answers; another goes on from the text as it stands.
        self.chat = "response" in data
        self.text_column = data.get("prompt" if self.chat else "text")
        folder = run / "model"
        adapted = not folder.is_dir() and (run / "adapter").is_dir()
        if adapted:  # prompt and prefix tuning, which can't be merged
            source = record["model"]
            hub = source["revision"] is not None
            folder = resolve_model(source["name"], source["revision"]).path if hub else run / BASE
        self.tokenizer, self.model = loaded(folder, "AutoModelForCausalLM")
        if adapted:
            self.model = _with_adapter(self.model, run / "adapter")
        self.model.to(own_accelerator().device)

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """What follows each text, in order; of a chat model its answer to each."""
        if self.chat:
            asked = [[{"role": "user", "content": text}] for text in texts]
            return [
                {"generated": answer(self.model, self.tokenizer, messages, self.tokens, self.seed)[0]}
                for messages in asked
            ]
        return [{"generated": generate(self.model, self.tokenizer, text, self.tokens, self.seed)} for text in texts]


def _with_adapter(model: Any, folder: Path) -> Any:
    from safetensors import SafetensorError

    from finetune.adapters.peft_adapter import load_peft

    try:
        return load_peft(model, folder).eval()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{folder} can't be loaded: {reason}", DAMAGED) from None
