"""How soon a call's credentials and connections are dead once its end is told

Requests with a credential hammer over several connections while the call is closed. What is counted is every request
with the credential that the destination's kernel received after `Closed` was back, by the kernel's own clock.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import socket
import struct
import threading
import time

from common import emit, options, spread
from outlet import Client, server
from outside import NAME, Outside, rule

from runner.wire.egress import Injection

TUNNELS = 4
KEY = "rnr-" + "k" * 32
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nhello, world\n"
_SEEN = multiprocessing.get_context("fork").Value("d", 0.0)  # when a request with the credential last arrived


def notes(connection: socket.socket) -> None:
    """Answer every head, and note when the one that carried the credential arrived."""
    while True:
        data, said, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(16))
        if not data:
            return
        if b"\r\nx-key: vvvv" in data and said:  # what arrived before the first clock was asked for has no time
            seconds, nanoseconds = struct.unpack("qq", said[0][2])
            with _SEEN.get_lock():
                _SEEN.value = max(_SEEN.value, seconds + nanoseconds / 1e9)
        if data.endswith(b"\r\n\r\n"):
            connection.sendall(ANSWER)


def hammer(through: int, where: str) -> None:
    """Ask again and again over several connections, until they are cut."""
    text = f"GET http://{where}/ HTTP/1.1\r\nHost: {where}\r\nX-Key: {KEY}\r\n\r\n".encode()

    def one() -> None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", through)) as sock:
            while True:
                sock.sendall(text)
                if not sock.recv(65536):
                    return

    threads = [threading.Thread(target=one) for _ in range(TUNNELS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def race(outside: Outside, client: Client, port: int, number: int) -> tuple[float, float, bool]:
    """One call under load, closed: milliseconds until it is dead, and until `Closed`; whether a use came after."""
    call = f"c{number}"
    held = Injection(name="key", placeholder=KEY, value=b"v" * 40, rules=("api",), places=("header:x-key",))
    through = outside.open(rule(port=port, protocol="http"), injections=(held,), call=call)
    before = _SEEN.value
    client.begin("hammer", through, f"{NAME}:{port}")
    outside.wait(lambda: _SEEN.value > before)

    async def close() -> tuple[float, float, float]:
        began = time.monotonic()
        closing = outside.proxy.close(1, call)
        step = time.monotonic()
        await closing
        return (step - began) * 1000, (time.monotonic() - began) * 1000, time.time()

    ended, closed, back = outside.run(close())
    client.finish()
    time.sleep(0.003)  # for the server to read what had arrived
    return ended, closed, _SEEN.value > back


def main(*, quick: bool) -> None:
    """Race after race."""
    races = 20 if quick else 1000
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(server(notes, threads=True))
        client = Client({"hammer": hammer})
        outside = Outside()
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
            f"{len(found)} calls with {TUNNELS} connections each under load, closed in the midst of it; from the "
            "step that takes `Close` off the channel"
        ),
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
