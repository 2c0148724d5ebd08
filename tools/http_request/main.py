"""Sends one request through the call's own listener and returns a bounded answer."""

import base64
import binascii
import json
import os

from runner.guest.beneath import ToolError
from runner.guest.outward import check_headers, parse_url, request

MOST_HEADERS = 16_384  # bytes of header fields that are returned
MOST_TEXT = 200_000  # bytes of the body as JSON: escapes can make text six times as long, and base64 is shorter then
# Variables of a copy of this tool whose manifest binds a credential ([[secrets]]): HTTP_BEARER, HTTP_PASSWORD (basic),
# or HTTP_HEADER_X_API_KEY for a header of that name. They hold placeholders: egress puts the values in.
HEADER = "HTTP_HEADER_"


def run(call):
    """The answer, whatever its status."""
    given = call.arguments
    url, method = parse_url(given["url"]), given.get("method", "GET")
    headers = check_headers(given.get("headers", {}))
    names = {name.lower() for name in headers}
    headers |= {name: value for name, value in credentials(os.environ).items() if name.lower() not in names}
    body = content(given)
    if body and method in ("GET", "HEAD", "OPTIONS"):
        raise ToolError(f"body: {method} has none", "body")
    if body and "content-type" not in names:
        headers["Content-Type"] = "application/octet-stream" if given.get("base64") else "text/plain; charset=utf-8"
    answer = request(method, url, headers=headers, body=body, most=given.get("limit", 65536))
    fields, room = [], MOST_HEADERS
    for name, value in answer.headers:
        room -= len(name) + len(value.encode())
        if room >= 0:
            fields.append([name, value])
    found = {
        "url": str(url),
        "status": answer.status,
        "reason": answer.reason,
        "headers": fields,
        **shown(answer.body, answer.cut),
        "size": len(answer.body),
        "truncated": answer.cut,
        "untrusted": True,
    }
    if answer.header("location"):
        found["location"] = answer.header("location")[:4096]
    return found


def credentials(environment):
    """The header fields that the manifest's credentials stand for."""
    found = {
        name.removeprefix(HEADER).replace("_", "-").title(): value
        for name, value in environment.items()
        if name.startswith(HEADER)
    }
    if "HTTP_BEARER" in environment:
        found["Authorization"] = f"Bearer {environment['HTTP_BEARER']}"
    elif "HTTP_PASSWORD" in environment:
        pair = f"{environment.get('HTTP_PASSWORD_USERNAME', '')}:{environment['HTTP_PASSWORD']}"
        found["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"
    return found


def content(given):
    """The bytes of the body. Raises `ToolError` for what is no base64."""
    text = given.get("body", "")
    if not given.get("base64"):
        return text.encode()
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ToolError("body: not base64", "body") from None


def shown(body, cut):
    """The body as text where it is text, else as base64. A character that the limit cut in two is left out."""
    for spare in range(4 if cut else 1):
        try:
            text = body[: len(body) - spare].decode()
        except UnicodeDecodeError:
            continue
        if len(json.dumps(text, ensure_ascii=False).encode()) > MOST_TEXT:
            break
        return {"body": text}
    return {"base64": base64.b64encode(body).decode()}
