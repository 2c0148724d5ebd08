"""The last request of a tool against the end of its call, through the whole daemon

A tool asks the service again and again with its credential, from a process that it leaves behind, while its call ends:
it is cancelled, or it exits. What is counted is every request that reaches the service after the client has the result,
and every entry of a request behind the outcome's in the ledger.
"""

from __future__ import annotations

import random
import time

from common import emit, networked, options, spread
from house import Daemon
from reached import HOST
from soak.service import Service

from runner.client import Runner
from runner.ledger import entry as entries

HAMMER = """
import http.client, os, ssl, sys
host, port, path = sys.argv[1:4]
if os.fork():
    sys.stdin.readline()
    os._exit(0)
proxy = os.environ["https_proxy"].removeprefix("http://").partition(":")
way = http.client.HTTPSConnection(proxy[0], int(proxy[2]))
way.set_tunnel(host, int(port))
while True:
    way.request("GET", path, headers={"Authorization": "Bearer " + os.environ["SERVICE_KEY"]})
    way.getresponse().read()
"""


def race(runner: Runner, daemon: Daemon, service: Service, number: int) -> tuple[float, int, str]:
    """One call: milliseconds from what ends it to its result, requests afterwards, its id."""
    path = f"/race-{number}-"
    argv = ["python3", "-c", HAMMER, HOST, str(service.web.port), path]
    with runner.stream("key_run", {"argv": argv}, stdin=True) as running:
        daemon.wait(lambda: service.asked(path) > 2)
        time.sleep(random.random() * 0.02)
        began = time.perf_counter()
        if number % 2:
            running.cancel()
        else:
            running.close_stdin()
        result = running.result()
        took = (time.perf_counter() - began) * 1000
        asked = service.asked(path)
        assert result.outcome.kind == ("cancelled" if number % 2 else "exited"), result
    time.sleep(0.05)
    return took, service.asked(path) - asked, result.call


def late_entries(daemon: Daemon) -> int:
    """Entries of a call's requests that lie behind its outcome."""
    over, late = set(), 0
    for entry in daemon.entries():
        if isinstance(entry, entries.Outcome):
            over.add(entry.call)
        elif isinstance(entry, entries.Egress | entries.EgressEnd):
            late += entry.call in over
    return late


def main(*, quick: bool) -> None:
    """Race after race, on one task."""
    races = 10 if quick else 200
    with networked() as (daemon, service):
        tools = {"key_run": {}, "egress": {}}
        with daemon.connect(profile="net", tools=tools, ttl_s=7200) as runner:
            found = [race(runner, daemon, service, number) for number in range(races)]
        outcomes = {each.call: each for each in daemon.entries(entries.Outcome)}
        late = late_entries(daemon)
    emit(
        "the last request of a tool against the end of its call, through the whole daemon",
        figures={
            "uses_afterwards": sum(after for _, after, _ in found),
            "entries_afterwards": late,
            "races": len(found),
            "requests": sum(outcomes[call].network.requests for _, _, call in found),
            **spread([took for took, _, _ in found], "result_"),
        },
        baseline={},
        ratios={},
        goal={"uses_afterwards": "<= 0", "entries_afterwards": "<= 0"},
        floor={"uses_afterwards": "<= 0", "entries_afterwards": "<= 0"},
        guarantee="listener, connections and credential of a call are dead, and its lease revoked, before its outcome",
        measured=(
            f"{races} calls that ask as fast as they can, ended by a cancel or by the tool's own exit at a random "
            "moment; result: from that to the sealed result at the client. Many races at the proxy alone: egress_close"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
