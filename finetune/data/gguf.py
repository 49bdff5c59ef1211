"""GGUF files (quantised weights of one decoder, tokenizer inside) as model folders, converted once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from finetune.data.converted import MANIFEST, converted_folder
from finetune.errors import SourceError
from finetune.files import sha256_file

__all__ = ["MANIFEST", "converted_model"]

# Part of every key: raise it when the same file would be converted to something else.
VERSION = 1
MAGIC = b"GGUF"


def converted_model(gguf: Path, name: str) -> Path:
    """A model folder (config, safetensors in fp32, tokenizer) made of a GGUF file; once for each content of the file.

    Quantised weights are multiplied out, so that the folder trains and loads as any other. Several processes may ask
    at once: one converts, the others wait. The files are hashed on each use; damaged ones are made again, aloud.

    Args:
        name: what the user wrote, for messages.

    Raises:
        SourceError: no GGUF file, an architecture that transformers can't read from GGUF, or no space.
    """
    try:
        with gguf.open("rb") as file:
            if file.read(4) != MAGIC:
                raise SourceError(f"{name}: {gguf} is not a GGUF file.", "Fetch it again, or name a model folder.")
    except OSError as error:
        raise SourceError(f"{name}: {gguf} can't be read: {error.strerror}.") from None
    key = f"{gguf.stem}-{sha256_file(gguf)[:16]}-v{VERSION}"
    return converted_folder(gguf, key, lambda folder: _save(gguf, folder, name))


def _save(gguf: Path, folder: Path, name: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
        # fp32 and not less: 4-bit weights are a scale times an integer plus an offset, which halves would round.
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    except ImportError as error:
        raise SourceError(f"{name} needs a package: {str(error).strip().splitlines()[0]}", "pip install gguf") from None
    except (ValueError, KeyError, NotImplementedError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SourceError(
            f"{name}: transformers can't read this GGUF file: {reason[0]}", "Name a folder or hub id with safetensors."
        ) from None
    # A model that remembers it was quantised refuses to be saved; the weights themselves are plain by now.
    config = type(model.config).from_dict(
        {key: value for key, value in model.config.to_dict().items() if key != "quantization_config"}
    )
    plain = type(model)(config)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
