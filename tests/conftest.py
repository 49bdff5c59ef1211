"""What tests of all tiers share."""

import os
import socket

import pytest


def pytest_configure() -> None:
    """Give each worker of `pytest -n` cores of its own: two busy processes on the same ones are ten times slower."""
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), os.environ.get("PYTEST_XDIST_WORKER_COUNT")
    if worker is not None and workers is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        own = cores[int(worker.removeprefix("gw")) :: int(workers)]
        if own:
            os.sched_setaffinity(0, own)  # processes that tests start inherit it


@pytest.fixture
def free_port() -> int:
    """A port on the loopback that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
