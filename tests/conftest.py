"""What tests of all tiers share."""

import socket

import pytest


@pytest.fixture
def free_port() -> int:
    """A port on the loopback that nothing listens on just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
