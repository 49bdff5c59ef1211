"""`finetune bench run` that is told to end: its processes end, no half record stays, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.integration

ENDLESS = 'set = ["train.max_updates=100000", "train.epochs=100000"]'
TABLE = f"""
title = "Short"
seeds = [0]
[[rows]]
name = "majority"
recipe = "bert_cls"
method = "majority"
[[rows]]
name = "other"
recipe = "bert_cls"
{ENDLESS}
[[columns]]
name = "spam"
data = "sms_spam"
set = ["data.max_train_rows=64", "data.max_tokens=16"]
"""


def bench(folder: Path) -> subprocess.Popen[str]:
    program = "from finetune.cli import console; console()"
    return subprocess.Popen(
        [sys.executable, "-c", program, "bench", "run", "short.toml"], cwd=folder, stdout=subprocess.PIPE, text=True,
        env=dict(os.environ),
    )  # fmt: skip


def endless_run(process: subprocess.Popen[str]) -> psutil.Process | None:
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # a run that ended just now
            if "finetune.run" in child.cmdline():
                return child
    return None


def test_sigterm_ends_all_and_the_same_command_goes_on(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text(TABLE, "utf-8")
    made = tmp_path / "results" / "short"
    process = bench(tmp_path)
    until = time.monotonic() + 120
    try:
        # The first run is done, and the second, which would take hours, is on its way.
        while (child := endless_run(process)) is None:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted after 1 runs" in said
    assert not child.is_running()
    (record,) = made.iterdir()
    before = record.stat().st_mtime_ns
    (tmp_path / "short.toml").write_text(TABLE.replace(ENDLESS, 'method = "tfidf"'), "utf-8")
    assert "1 runs done here" in bench(tmp_path).communicate(timeout=120)[0]
    assert record.stat().st_mtime_ns == before
    assert len(list(made.iterdir())) == 2
