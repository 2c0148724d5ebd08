"""What providers talk to in tests: `tests/credential_servers.py` has the servers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from credential_servers import Authority, Bao, Postgres, Relay, private_folder

from runner.broker.providers.http import Network


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(scope="session")
def bao() -> Iterator[Bao]:
    with private_folder() as folder:
        server = Bao(folder)
        yield server
        server.close()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with private_folder() as folder:
        server = Postgres(folder)
        yield server
        server.close()


@pytest.fixture
def network(relay: Relay, authority: Authority) -> Network:
    """Through the relay, trusting the test's authority."""
    return Network(trust=authority.pem, proxy=relay.url)
