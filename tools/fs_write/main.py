"""Writes one file."""

import base64
import binascii
import os

from runner.guest.beneath import ToolError, failure


def run(call):
    """How much was written, and how large the file is now."""
    given = call.arguments
    data = content(given["content"], given.get("base64", False))
    place = call.place("path")
    with place.writer(append=given.get("append", False), parents=given.get("create_parents", False)) as file:
        try:
            file.write(data)
            file.flush()
        except OSError as error:
            raise failure(given["path"], error) from None
        size = os.fstat(file.fileno()).st_size
    return {"path": given["path"], "written": len(data), "size": size}


def content(text, encoded):
    """The bytes to write. Raises `ToolError` when they are not valid."""
    try:
        return base64.b64decode(text, validate=True) if encoded else text.encode()
    except (binascii.Error, ValueError) as error:
        raise ToolError(f"content: not valid {'base64' if encoded else 'text'}: {error}", "content") from None
