"""Garbage is looked for seldom while libraries are imported, and as usual from then on."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator

import pytest

from finetune.garbage import SELDOM, USUAL, collect_as_usual, collect_seldom

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)
    gc.unfreeze()


def test_what_was_imported_is_searched_no_more() -> None:
    gc.set_threshold(*USUAL)
    collect_seldom()
    assert gc.get_threshold() == SELDOM
    collect_as_usual()
    assert gc.get_threshold() == USUAL
    assert gc.get_freeze_count() > 1000


def test_a_process_of_somebody_elses_keeps_its_own() -> None:
    gc.set_threshold(1234, 5, 6)
    collect_as_usual()
    assert gc.get_threshold() == (1234, 5, 6)
    assert gc.get_freeze_count() == 0


def test_it_goes_for_commands_and_not_for_imports() -> None:
    lines = """
import gc, sys
import finetune.cli
print(gc.get_threshold())
sys.argv[1:] = ["list"]
try:
    finetune.cli.console()
except SystemExit:
    print(gc.get_threshold())
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    shown = done.stdout.splitlines()
    assert (shown[0], shown[-1]) == (str(USUAL), str(SELDOM))
