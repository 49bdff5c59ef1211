"""Tokens and passwords, known by form or from the environment: no setting may hold one, no message repeats one."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from finetune.errors import ConfigError

KEYS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.*?-----END [A-Z ]*PRIVATE KEY-----)?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[0-9A-Za-z]{36,}|\bhf_[0-9A-Za-z]{30,}"
    r"|\bsk-[0-9A-Za-z_-]{20,}|\bxox[abprs]-[0-9A-Za-z-]{10,}|\bAIza[0-9A-Za-z_-]{35}"
    r"|\beyJ[0-9A-Za-z_-]{10,}\.eyJ[0-9A-Za-z_-]{10,}\.[0-9A-Za-z_-]{10,}",
    re.DOTALL,
)
"""Keys that their issuers gave a form of their own."""
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]+@")
_VARIABLE = re.compile(r"(?i)(?:^|_)(?:token|secret|password|passwd|api_?key|access_key|secret_key)$")
# Shorter values are words: a message that is full of *** helps nobody.
_SHORTEST = 8
MASK = "***"


def masked(text: str) -> str:
    """A text with `***` in place of keys, of the user and password of addresses, and of the environment's tokens."""
    text = _IN_ADDRESS.sub(f"{MASK}@", KEYS.sub(MASK, text))
    for value in _known():
        text = text.replace(value, MASK)
    return text


def refuse_credentials(settings: Mapping[str, Any]) -> None:
    """Refuse settings that hold a token or a password: they would stand in run.json, in checkpoints and on the card.

    Raises:
        ConfigError: names the setting and not its value.
    """
    for key, value in settings.items():
        if masked(str(value)) != str(value):
            raise ConfigError(
                f"{masked(key)} holds what looks like a token or a password, which would stand in the run's files.",
                "Log in with `hf auth login`, or set it in the environment (HF_TOKEN, PIP_INDEX_URL, WANDB_API_KEY).",
            )


class Parser(argparse.ArgumentParser):
    """Repeats no token of a line that it refuses."""

    def error(self, message: str) -> NoReturn:
        super().error(masked(message))


def _known() -> list[str]:
    """Longest first: one may be part of another."""
    values = {value for name, value in os.environ.items() if _VARIABLE.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)
