"""run.json: everything that is needed to run a run again, written atomically, also when it fails."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import finetune
from finetune.files import write_json

PACKAGES = (
    "accelerate",
    "datasets",
    "evaluate",
    "numpy",
    "peft",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)


class RunRecord:
    """The content of run.json; `path=None` (processes other than the main one) keeps it in memory only."""

    def __init__(self, path: Path | None, content: dict[str, Any]) -> None:
        self.path = path
        self.content = content

    def update(self, **values: Any) -> None:
        """Set top-level keys and write the file."""
        self.content.update(values)
        if self.path is not None:
            write_json(self.path, self.content)


def versions() -> dict[str, str]:
    """Versions of Python, this toolkit and what it leans on."""
    found = {"python": platform.python_version(), "finetune": finetune.__version__}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def commit() -> str | None:
    """The toolkit's own git commit, with `+dirty` when files differ from it; None when it is not a checkout."""
    folder = Path(finetune.__file__).parent.parent
    if not (folder / ".git").exists():
        return None
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return f"{head}+dirty" if _git(folder, "status", "--porcelain") else head
    except (OSError, subprocess.SubprocessError):
        return None  # no git on this machine, or a checkout of another user: the versions still tell most


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
