"""The kill matrix, reduced: each victim at steps where it hurts. `scripts/soak kill-matrix` tries every cell."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from house import Daemon
from soak import holds, matrix
from soak.dockerd import Dockerd
from soak.service import Service

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]
GENEROUS_S = 30.0  # the promise is five seconds; `scripts/soak` holds the daemon to it, where nothing else runs
QUICK = "[limits]\ndrain_s = 1.0\nkill_grace_s = 2.0\n"


def test_every_step_of_the_pipeline_can_be_held() -> None:
    """Whoever adds a step, or a wait, adds a hold for it: the matrix is made of the pipeline's own."""
    assert holds.waits() == {wait for hold in holds.HOLDS for wait in hold.waits}
    assert set(holds.steps()) == {step for hold in holds.HOLDS for step in hold.steps}
    assert len(holds.waits()) >= 12
    assert len(holds.steps()) == 8


def test_the_matrix_has_a_truth_for_every_cell() -> None:
    victims = {*matrix.VICTIMS, *matrix.DOCKER_VICTIMS}
    every = {(hold.name, victim) for hold in holds.HOLDS for victim in victims}
    untried = {("claim", "supervisor"), ("claim", "launcher")}
    leased = ("issue", "listen", "serve", "judge", "request", "close", "revoke")
    untried |= {(step, victim) for step in leased for victim in matrix.DOCKER_VICTIMS}
    assert every - set(matrix.TRUTHS) == untried
    assert set(matrix.TRUTHS) <= every
    assert len(victims) >= 13


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    made = Service(tmp_path)
    yield made
    made.close()


def fire(daemon: Daemon, uids: range, service: Service, names: Iterable[str], engine: Dockerd | None = None) -> None:
    """Try these cells, named `victim:step`; every one of them must have gone well."""
    service.open(daemon)
    tried = matrix.Matrix(daemon, uids=uids, service=service, seconds=GENEROUS_S, docker=engine)
    by_name = {hold.name: hold for hold in holds.HOLDS}
    rows = [tried.cell(by_name[step], victim) for victim, step in (name.split(":") for name in names)]
    assert not [row for row in rows if row.wrong]


def a_range() -> range:
    first = 400_000 + random.randrange(10_000) * 32
    return range(first, first + 32)


@pytest.mark.parametrize(
    "names",
    [
        ("nobody:execute", "parent:frame", "parent:moment", "parent:keep", "gate:record_call", "gate:deliver",
         "recorder:execute"),
        ("engine:claim", "engine:deliver", "recorder:seal", "recorder:answer", "gate:claim"),
        ("nobody:seal", "supervisor:start", "supervisor:credit", "launcher:launch", "launcher:execute",
         "client:decide", "client:claim"),
        ("nobody:request", "egress:request", "broker:close", "egress:execute", "client:request"),
        ("broker:issue", "engine:listen", "egress:revoke", "parent:judge", "gate:close"),
        ("terminate:execute", "terminate:deliver", "terminate:replay", "terminate:record_call"),
    ],
    ids=["daemon", "parts", "sandbox", "outward", "leases", "drain"],
)  # fmt: skip
def test_killed_at_a_step_it_leaves_nothing_and_the_trace_tells_the_truth(
    names: tuple[str, ...], service: Service, make_daemon: Callable[..., Daemon]
) -> None:
    uids = a_range()
    config = f"uid_first = {uids.start}\nuid_count = {len(uids)}\n{QUICK}{service.config}"
    fire(make_daemon(config=config, catalogue=service.folder), uids, service, names)


def test_a_docker_engine_that_goes_away_and_comes_back_leaves_nothing(
    tool_image: str, service: Service, make_daemon: Callable[..., Daemon]
) -> None:
    """Its containers are removed when it is back, not at the daemon's next start."""
    uids = a_range()
    with Dockerd(tool_image) as engine:
        place = f'docker_host = "{engine.host}"\nuid_first = {uids.start}\nuid_count = {len(uids)}\n{QUICK}'
        daemon = make_daemon(start=False, config=place + service.config, catalogue=service.folder)
        daemon.docker_host = engine.host
        daemon.start()
        names = ("nobody:execute", "dockerd-stop:execute", "dockerd-stop:claim", "dockerd-kill:start")
        fire(daemon, uids, service, names, engine)
        assert daemon.stop() == 0
        assert not daemon.containers()
        daemon.docker_host = ""  # this one is about to be gone


def test_a_start_waits_for_the_processes_of_a_killed_predecessor(make_daemon: Callable[..., Daemon]) -> None:
    """Two recorders of one ledger never meet, and a restart at once is no failure."""
    daemon = make_daemon()
    recorder = daemon.child("recorder")
    recorder.send_signal(signal.SIGSTOP)
    psutil.Process(daemon.pid).kill()
    assert daemon.ended() == -signal.SIGKILL
    failed: list[BaseException] = []

    def start() -> None:
        try:
            daemon.start()
        except BaseException as error:
            failed.append(error)

    starting = threading.Thread(target=start)
    starting.start()
    try:
        daemon.wait(lambda: "waiting for the processes of the daemon before" in daemon.said(), 20)
        assert daemon.said().count("serving: instance") == 1
    finally:
        recorder.send_signal(signal.SIGCONT)
        starting.join(60)
    assert not failed
    with daemon.connect() as runner:
        assert runner.call("shell_run", {"argv": ["true"]}).ok
    assert daemon.verifies()
    assert (Path(daemon.state) / "family").exists()
