"""The ledger's key is replaced between two lives of a daemon: refused while it runs, and the record goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from house import Daemon

from runner.errors import RunnerError
from runner.evidence.verify import verify
from runner.recorder.rotate import rotate_key

NOW = "2026-01-02T03:04:05.000006Z"


@pytest.mark.docker
@pytest.mark.root
def test_a_daemon_goes_on_under_the_key_that_replaced_its_own(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    ledger = daemon.state / "ledger"
    first = (ledger / "key.pub").read_text()
    with pytest.raises(RunnerError, match="another recorder"):
        rotate_key(daemon.state, lambda: NOW, by=0)
    assert daemon.stop() == 0
    replaced = rotate_key(daemon.state, lambda: NOW, by=0)
    daemon.start()
    assert daemon.stop() == 0
    report = verify(ledger, first, daemon.state / "content")
    assert report.ok, report
    assert report.entries > replaced.position + 2
    assert (ledger / "key.pub").read_text().strip() == replaced.new != first.strip()
