"""How soon a call's credentials and connections are dead once its end is told

Requests with a credential hammer over several inspected tunnels while the call is closed. What is counted is every
request that reached the destination with the credential after `Closed` was back.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import ssl
import threading
import time

from common import emit, options, spread
from egress_request import ANSWER, KEY
from outlet import Client, server
from outside import NAME, Outside, rule, tunnel

from runner.wire.egress import Injection

TUNNELS = 4
_SEEN = multiprocessing.get_context("fork").Value("d", 0.0)  # when a request with the credential last arrived


def notes(connection: socket.socket) -> None:
    """Answer every head, and note when one carried the credential."""
    while data := connection.recv(65536):
        if b"\r\nx-key: vvvv" in data:
            _SEEN.value = time.monotonic()
        if data.endswith(b"\r\n\r\n"):
            connection.sendall(ANSWER)


def hammer(through: int, where: str, trust: bytes) -> int:
    """Ask again and again over several tunnels, until they are cut; how many answers came."""
    context = ssl.create_default_context(cadata=trust.decode())
    text = f"GET / HTTP/1.1\r\nHost: {where}\r\nX-Key: {KEY}\r\n\r\n".encode()
    answers = 0

    def one() -> None:
        nonlocal answers
        with (
            contextlib.suppress(OSError, AssertionError),
            context.wrap_socket(tunnel(through, where), server_hostname=NAME) as tls,
        ):
            while True:
                tls.sendall(text)
                if not tls.recv(65536):
                    return
                answers += 1

    threads = [threading.Thread(target=one) for _ in range(TUNNELS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def race(outside: Outside, client: Client, port: int, number: int) -> tuple[float, float, bool]:
    """One call under load, closed: milliseconds until it is dead, and until `Closed`; whether a use came after."""
    call = f"c{number}"
    held = Injection(name="key", placeholder=KEY, value=b"v" * 40, rules=("api",), places=("header:x-key",))
    through = outside.open(rule(port=port, inspect=True), injections=(held,), call=call)
    before = _SEEN.value
    client.begin("hammer", through, f"{NAME}:{port}", outside.bundle())
    outside.wait(lambda: _SEEN.value > before)

    async def close() -> tuple[float, float]:
        began = time.monotonic()
        closing = outside.proxy.close(1, call)
        step = time.monotonic()
        await closing
        return (step - began) * 1000, (time.monotonic() - began) * 1000

    ended, closed = outside.run(close())
    back = time.monotonic()
    client.finish()
    return ended, closed, _SEEN.value > back


def main(*, quick: bool) -> None:
    """Race after race."""
    races = 20 if quick else 1000
    certificates = Outside()
    context, believed = certificates.tls(), certificates.authority
    certificates.close()

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            notes(tls)

    with contextlib.ExitStack() as stack:
        port = stack.enter_context(server(serve, threads=True))
        client = Client({"hammer": hammer})
        outside = Outside(authority=believed)
        stack.callback(client.close)
        stack.callback(outside.close)
        found = [race(outside, client, port, number) for number in range(races)]
    emit(
        "egress: a call's credentials and connections dead after its end",
        figures={
            **spread([step for step, _, _ in found], "dead_"),
            **spread([closed for _, closed, _ in found], "closed_"),
            "uses_afterwards": sum(late for _, _, late in found),
            "races": len(found),
        },
        baseline={},
        ratios={},
        goal={"closed_p99_ms": "<= 1", "uses_afterwards": "<= 0"},
        floor={"closed_p99_ms": "<= 10", "uses_afterwards": "<= 0"},
        guarantee="when `Closed` is sent no connection, dial or credential of the call is left",
        measured=(
            f"{len(found)} calls with {TUNNELS} inspected tunnels each under load, closed in the midst of it; from the "
            "step that takes `Close` off the channel"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
