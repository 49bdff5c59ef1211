"""Finds the name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near(name: str, known: Iterable[str]) -> str | None:
    """The known name nearest to `name` (case doesn't count), or None when none is like it."""
    by_folded = {other.casefold(): other for other in known}
    matches = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None
