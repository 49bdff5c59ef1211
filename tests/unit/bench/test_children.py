"""Processes of a table: their status and messages, and their end when the table is told to end."""

from __future__ import annotations

import signal
import sys
import threading
import time

import pytest

from finetune.bench import children
from finetune.bench.children import Children, Stopped

pytestmark = pytest.mark.unit

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def test_status_and_message_of_a_process_come_back() -> None:
    assert Children().run([sys.executable, "-c", "import sys; sys.exit('no such thing')"], 1) == (1, "no such thing\n")


def test_its_libraries_have_the_tables_threads() -> None:
    code = "import os, sys; sys.exit(int(os.environ['OMP_NUM_THREADS']) + int(os.environ['OPENBLAS_NUM_THREADS']))"
    assert Children().run([sys.executable, "-c", code], 3)[0] == 6


@pytest.mark.parametrize("code", ["import time; time.sleep(60)", STUBBORN])
def test_a_signal_ends_what_runs_and_nothing_more_is_begun(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(children, "GRACE_S", 0.3)
    some, ended = Children(), []

    def work() -> None:
        try:
            some.run([sys.executable, "-c", code], 1)
        except Stopped:
            ended.append(time.monotonic())

    worker = threading.Thread(target=work)
    worker.start()
    time.sleep(0.3)
    some.end(signal.SIGINT)
    worker.join(10)
    assert len(ended) == 1
    assert some.stop.is_set()
    assert some.signal == signal.SIGINT
    with pytest.raises(Stopped):
        some.run([sys.executable, "-c", "pass"], 1)
