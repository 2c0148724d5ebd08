"""Programs that tests run in a sandbox: what a tool asks of the network, politely and otherwise, and what it gets."""

from __future__ import annotations

import ipaddress
import json
from typing import Any

# Each prints one JSON list: an answer to each wish. `$NAME` in a text is that variable.
_START = """
import base64, json, os, socket, ssl, string, sys, urllib.error, urllib.request
def fill(text):
    return string.Template(text).safe_substitute(os.environ)
found = []
"""
_FETCH = (
    _START
    + """
for wish in json.loads(sys.argv[1]):
    body = fill(wish["body"]).encode() * wish.get("times", 1) if "body" in wish else None
    if wish.get("chunked"):
        body = iter([body[:7], body[7:]])
    headers = {fill(name): fill(value) for name, value in wish.get("headers", {}).items()}
    if "basic" in wish:
        headers["Authorization"] = "Basic " + base64.b64encode(fill(wish["basic"]).encode()).decode()
    request = urllib.request.Request(fill(wish["url"]), body, headers, method=wish.get("method"))
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if wish.get("direct") else []))
    try:
        with opener.open(request, timeout=30) as answer:
            found.append({"status": answer.status, "url": answer.url, "body": answer.read().decode()})
    except urllib.error.HTTPError as error:
        found.append({"status": error.code, "body": error.read().decode()})
    except Exception as error:
        found.append({"status": 0, "error": type(error).__name__, "body": str(error)})
    if found[-1]["body"].startswith("<urlopen"):
        found[-1]["body"] = found[-1]["body"][:300]
print(json.dumps(found))
"""
)
_TALK = (
    _START
    + """
port = int(os.environ["http_proxy"].rpartition(":")[2])
for wish in json.loads(sys.argv[1]):
    said = b""
    try:
        with socket.create_connection(("127.0.0.1", wish.get("port") or port), timeout=30) as sock:
            sock.sendall(fill(wish["send"]).encode("latin-1"))
            if "then" in wish:
                while not said.endswith(b"\\r\\n\\r\\n"):
                    data = sock.recv(1)
                    if not data:
                        break
                    said += data
                stream = sock
                if "sni" in wish:
                    context = ssl.create_default_context()
                    context.check_hostname = False
                    stream = context.wrap_socket(sock, server_hostname=wish["sni"] or None)
                stream.sendall(fill(wish["then"]).encode("latin-1"))
                if wish.get("half"):
                    stream.shutdown(socket.SHUT_WR)
            else:
                stream = sock
            while data := stream.recv(65536):
                said += data
    except Exception as error:
        said += ("!" + type(error).__name__ + " " + str(error)).encode()
    found.append(said.decode("latin-1"))
print(json.dumps(found))
"""
)
_REACH = (
    _START
    + """
import errno, time
for kind, host, port in json.loads(sys.argv[1]):
    began = time.monotonic()
    try:
        if kind == "name":
            socket.getaddrinfo(host, port)
        elif kind == "raw":
            socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
        elif kind == "unix":
            socket.socket(socket.AF_UNIX).connect(host)
        else:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
            sock.settimeout(30)
            if kind == "tcp":
                sock.connect((host, port))
            else:
                sock.sendto(b"x" * 40, (host, port))
        found.append("passed")
    except socket.gaierror as error:
        found.append("gaierror")
    except OSError as error:
        found.append(errno.errorcode.get(error.errno, type(error).__name__))
print(json.dumps(found))
"""
)


def fetch(*wishes: dict[str, Any] | str) -> dict[str, Any]:
    """urllib's requests, through the proxy that the environment names: url, method, headers, body, times, chunked,
    basic, direct."""
    return _program(_FETCH, [{"url": wish} if isinstance(wish, str) else wish for wish in wishes])


def talk(*wishes: dict[str, Any]) -> dict[str, Any]:
    """Bytes to the proxy: `send`; after its first answer, inside TLS where there is an `sni`, `then`."""
    return _program(_TALK, list(wishes))


def reach(*wishes: tuple[str, str, int]) -> dict[str, Any]:
    """What a program does without asking any proxy: "tcp", "udp", "name", "raw" or "unix", a host, a port. To addresses
    of loopback alone: tests send nothing to any other, walls or not."""
    assert all(ipaddress.ip_address(host).is_loopback for kind, host, _ in wishes if kind in ("tcp", "udp")), wishes
    return _program(_REACH, list(wishes))


def python(text: str, *words: str) -> dict[str, Any]:
    """A program of a test's own."""
    return {"argv": ["python3", "-c", text, *words]}


def _program(text: str, wishes: Any) -> dict[str, Any]:
    return {"argv": ["python3", "-c", text, json.dumps(wishes)]}


def told(done: Any) -> list[Any]:
    """What such a program printed."""
    try:
        found: list[Any] = json.loads(done.text)
    except json.JSONDecodeError:
        raise AssertionError(f"{done.summary()}: {done.text} {done.stderr.decode()}") from None
    return found
