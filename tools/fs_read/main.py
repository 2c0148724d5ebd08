"""Reads one piece of a file."""

import base64
import os
import re

# Control characters other than tab, newline, carriage return, form feed and escape: binary, whatever UTF-8 says.
BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
LONGEST_CHARACTER = 4


def run(call):
    """The piece as text if it is text, else as base64."""
    offset = call.arguments.get("offset", 0)
    limit = call.arguments.get("limit", 65536)
    with call.open("path") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(offset)
        data = file.read(limit)
        cut = file.read(1) != b""
    text = as_text(data, cut)
    taken = len(data) if text is None else len(text.encode())
    content = {"base64": base64.b64encode(data).decode()} if text is None else {"content": text}
    following = offset + taken
    eof = not cut and taken == len(data)
    return {"path": call.arguments["path"], **content, "offset": offset, "next": following, "size": size, "eof": eof}


def as_text(data, cut):
    """`data` as text, None when it is not; a character that the limit cut in two is left for the next piece."""
    if BINARY.search(data):
        return None
    for spare in range(LONGEST_CHARACTER if cut else 1):
        try:
            text = data[: len(data) - spare].decode()
        except UnicodeDecodeError:
            continue
        return text if text or not data else None
    return None
