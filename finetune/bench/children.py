"""The processes of a table's runs: each worker's on cores of its own, and all of them ended when the table is."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from finetune.data.cache import say

# A run that is asked to end first finishes its update and writes a checkpoint, which nobody will read.
GRACE_S = 5.0
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Stopped(Exception):
    """The table was told to end while a run was on its way."""


class Children:
    """Processes that were started and have not ended.

    Attributes:
        stop: no run is begun any more; set by a signal, and by a run that failed.
        signal: the signal that asked the table to end, 0 for none. Runs on their way are ended by it.
    """

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.signal = 0
        self._asked_at = 0.0
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()

    def run(self, command: list[str], threads: int, out: IO[str] | None = None) -> tuple[int, str]:
        """Run a command to its end: (exit status, standard error); its standard output goes to `out`, or nowhere.

        Raises:
            Stopped: a signal ended it, or came before it began.
        """
        environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
        with self._lock:
            if self.signal:
                raise Stopped
            # A session of its own: Ctrl-C reaches this process alone, and the child ends with all that it started.
            child = subprocess.Popen(
                command,
                stdout=out or subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
                start_new_session=True,
            )
            self._running.add(child)
        try:
            while True:
                try:
                    _, error = child.communicate(timeout=0.5)
                    break
                except subprocess.TimeoutExpired:
                    if self.signal and time.monotonic() - self._asked_at > GRACE_S:
                        _end(child, signal.SIGKILL)
        finally:
            with self._lock:
                self._running.discard(child)
        if self.signal:
            raise Stopped
        return child.returncode, error

    def end(self, number: int, _: Any = None) -> None:
        """Ask all processes to end; a signal handler."""
        self.signal = self.signal or number
        self._asked_at = self._asked_at or time.monotonic()
        self.stop.set()
        # The main thread, where handlers run, never holds the lock.
        with self._lock:
            running = list(self._running)
        for child in running:
            _end(child, signal.SIGTERM)

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the processes before this one."""
        before = {number: signal.signal(number, self.end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def core_sets(workers: int, threads: int) -> list[set[int]]:
    """The cores of each worker, of those that this process may run on; empty sets where a system can't pin.

    Where there are fewer cores than the workers use, some share theirs: the same records but for the times.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [set() for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    if workers > 1 and workers * threads > len(cores):
        say(f"{workers} workers of {threads} thread(s) share {len(cores)} core(s): their runs will take longer, and "
            "the times in the records say so.")  # fmt: skip
    places = [range(number * threads, (number + 1) * threads) for number in range(workers)]
    return [{cores[place % len(cores)] for place in some} for some in places]


def pin(cores: set[int]) -> None:
    """Keep the calling thread, and every process that it starts, on these cores."""
    if cores:
        os.sched_setaffinity(0, cores)


def _end(child: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.pid, number)  # its group has its number, because its session is its own
