"""What the JSON files of a model folder may say, checked before a library reads them: no code, no file elsewhere."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from finetune.errors import SourceError

# Files that transformers and peft read by themselves from a model folder. Vocabularies may be large; settings are not.
LARGEST_BYTES = 200 * 2**20
LARGEST_SETTINGS_BYTES = 20 * 2**20
VOCABULARIES = {"tokenizer.json", "vocab.json", "merges.txt"}
DEEPEST = 100
# Settings by which a model folder names Python code that is to be imported from it or from the hub.
CODE_KEYS = {"auto_map", "auto_mapping", "trust_remote_code", "custom_pipelines", "custom_generate", "code_revision"}
# Settings that name files beside themselves; each must be a plain name of a file in the folder.
FILE_KEY_ENDS = ("_file", "_files", "_path", "file_name")


def check_artefacts(folder: Path, name: str, unread: Collection[str] = ()) -> None:
    """Refuse a model folder whose settings ask for code or for files elsewhere.

    transformers imports code only where `trust_remote_code` is on, which it never is here; but other libraries read
    these files too, and a vocabulary is opened by whatever path stands there (`sources` looks at shard maps).

    Args:
        name: the model as the user named it, for messages.
        unread: keys that nothing reads here, and that may therefore name code.

    Raises:
        SourceError: names file and key.
    """
    for path in sorted(folder.glob("*.json")):
        limit = LARGEST_BYTES if path.name in VOCABULARIES else LARGEST_SETTINGS_BYTES
        if not path.is_file():
            raise SourceError(f"{name}: {path.name} is no file.")
        if path.stat().st_size > limit:
            raise SourceError(f"{name}: {path.name} has {path.stat().st_size:,} bytes; the limit is {limit:,}.")
        if path.name in VOCABULARIES:
            continue  # read by Rust, which knows only its own kinds of content; words are no settings
        for keys, value in _entries(_parsed(path, name)):
            if keys[-1] not in unread:
                _check_entry(path.name, keys, value, name)


def _check_entry(file: str, keys: tuple[str, ...], value: Any, name: str) -> None:
    where = f"{name}: {file}, {'.'.join(keys)}"
    if keys[-1] in CODE_KEYS and value not in (None, False, {}, []):
        raise SourceError(
            f"{where} asks for code to be imported, which is never done here.",
            "Use a model whose class is part of transformers; if this one is, take the key out of a local copy.",
        )
    names_a_file = keys[-1].endswith(FILE_KEY_ENDS) and not keys[-1].endswith("name_or_path")
    if names_a_file and isinstance(value, str) and not _plain(value):
        raise SourceError(
            f"{where} is {value!r}, a path that leaves the model's folder.", "Put the file into the folder."
        )


def _plain(value: Any) -> bool:
    """Whether it is a file's name alone: no folder, no parent, no drive, no URL."""
    return isinstance(value, str) and bool(value) and not set(value) & set("/\\:\0") and value not in (".", "..")


def _parsed(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{name}: {path.name} is no JSON that can be read: {problem}.") from None


def _entries(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every key of nested objects with its value."""
    if len(keys) > DEEPEST:
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*keys, str(key)), inner
            yield from _entries(inner, (*keys, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _entries(inner, (*keys, "[]"))
