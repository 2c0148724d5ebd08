"""Bulk through an opaque tunnel

Bytes a second from a server to a client through CONNECT, beside the same two without a proxy; and towards the server,
where every byte is also looked through for placeholders.
"""

from __future__ import annotations

import socket
import statistics
import time

from common import emit, options
from outlet import Client, cpu_us, proxy, server
from outside import NAME, rule, tunnel

PIECE = 256 << 10
CANARY = "rnr-" + "c" * 32
PLACEHOLDER = "rnr-" + "p" * 32


def move(connection: socket.socket) -> None:
    """Send, or take, as many bytes as the first eight say; then one byte back."""
    order = connection.recv(9, socket.MSG_WAITALL)
    size = int.from_bytes(order[1:9], "big")
    if order[:1] == b"d":
        give(connection, size)
    else:
        take(connection, size)
        connection.sendall(b".")


def give(connection: socket.socket, size: int) -> None:
    """Send this much."""
    buffer = memoryview(bytearray(PIECE))
    while size:
        size -= connection.send(buffer[: min(PIECE, size)])


def take(connection: socket.socket, size: int) -> None:
    """Read this much."""
    buffer = memoryview(bytearray(PIECE))
    while size:
        count = connection.recv_into(buffer)
        assert count
        size -= count


def moved(port: int, through: int, way: str, size: int) -> float:
    """MB/s of one connection, direct when `through` is 0."""
    sock = tunnel(through, f"{NAME}:{port}") if through else socket.create_connection(("127.0.0.1", port))
    with sock:
        began = time.perf_counter()
        sock.sendall(way.encode() + size.to_bytes(8, "big"))
        if way == "d":
            take(sock, size)
        else:
            give(sock, size)
            take(sock, 1)
        return size / 1e6 / (time.perf_counter() - began)


def main(*, quick: bool) -> None:
    """Direct and through the proxy in turns, both ways."""
    size, rounds = (32 << 20, 2) if quick else (1 << 30, 7)
    found: dict[str, list[float]] = {}
    used: dict[str, list[float]] = {}
    with server(move) as port:
        client = Client({"moved": moved})
        with proxy() as outside:
            through = outside.open(rule(port=port, protocol="tcp"), canary=CANARY)
            for number in range(-1, rounds):
                for way, place in (("d", 0), ("d", through), ("u", 0), ("u", through)):
                    before = cpu_us()
                    rate = client.ask("moved", port, place, way, size)
                    name = ("down" if way == "d" else "up") + ("_proxied" if place else "_direct")
                    if number >= 0:
                        found.setdefault(name, []).append(rate)
                        used.setdefault(name, []).append((cpu_us() - before) / (size / 1e6))
        client.close()
    middle = {name: statistics.median(rates) for name, rates in found.items()}
    emit(
        "egress: bulk through an opaque tunnel",
        figures={
            "down_mb_s": middle["down_proxied"],
            "up_mb_s": middle["up_proxied"],
            "down_cpu_us_per_mb": statistics.median(used["down_proxied"]),
            "up_cpu_us_per_mb": statistics.median(used["up_proxied"]),
        },
        baseline={"down_direct_mb_s": middle["down_direct"], "up_direct_mb_s": middle["up_direct"]},
        ratios={
            "down_over_direct": middle["down_proxied"] / middle["down_direct"],
            "up_over_direct": middle["up_proxied"] / middle["up_direct"],
        },
        goal={"down_mb_s": ">= 400", "up_mb_s": ">= 400"},
        floor={"down_mb_s": ">= 200", "up_mb_s": ">= 200"},
        guarantee=(
            "counted, held to budgets and idle limits; towards the destination each byte is searched for the call's "
            "canary. The tunnel is opaque: nothing in it is judged"
        ),
        measured=f"median of {rounds} connections of {size >> 20} MiB each, server, proxy and client a process each",
        quick=quick,
    )


if __name__ == "__main__":
    main(quick=options(__doc__ or "").quick)
