"""What tests of all tiers share."""

import os
import shutil
import socket
import tempfile
from pathlib import Path

import psutil
import pytest

from finetune.garbage import collect_as_usual, collect_seldom

# Temporary files in memory where there is this much room. The runs of a whole suite write tens of gigabytes, of which
# nine stand at once in the end, and three workers need nine more.
ROOM, FREE = 12 << 30, 18 << 30
MEMORY = Path("/dev/shm")


def pytest_configure() -> None:
    """Temporary files in memory; imports as in a run; for each worker of `pytest -n` cores of its own, or one shared.

    Two busy processes of several threads on the same cores are ten times slower; of one thread each, they take turns.
    """
    collect_seldom()
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM and psutil.virtual_memory().available > FREE
    if roomy and "TMPDIR" not in os.environ and "PYTEST_DEBUG_TEMPROOT" not in os.environ:
        os.environ["TMPDIR"] = str(MEMORY)  # for the processes of tests too
        tempfile.tempdir = None
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if worker is not None and workers is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[int(worker.removeprefix("gw")) % len(cores) :: int(workers)]
        os.sched_setaffinity(0, own)  # processes that tests start inherit it


def pytest_collection_finish() -> None:
    """What all tests import is left out of every search for garbage: a trainer asks for one at each of its ends."""
    collect_as_usual()


@pytest.fixture
def free_port() -> int:
    """A port on the loopback that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
