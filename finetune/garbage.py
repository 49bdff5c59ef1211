"""When Python looks for garbage: seldom while libraries are imported, as usual while a model is trained."""

from __future__ import annotations

import gc

# Of containers that were made and not yet freed. Importing torch and transformers makes a million that stay; looking
# through them again and again is a fifth of that time, about a second.
SELDOM = (100_000, 50, 50)
USUAL = gc.get_threshold()


def collect_seldom() -> None:
    """For a process of ours that is about to import."""
    gc.set_threshold(*SELDOM)


def collect_as_usual() -> None:
    """For what comes after: garbage may hold tensors. What was imported is left out of all further searches."""
    if gc.get_threshold() == SELDOM:  # else the process is somebody's own
        gc.freeze()
        gc.set_threshold(*USUAL)
