"""The process of a python tool's call: reads its arguments, runs `run(call)` of the tool's main.py, writes the result.

Descriptors: 0, 1, 2 as of any program; 3 holds the call as gate sent it (START in `runner/wire/guest.py`), 4 takes
the result as JSON. Exit status 0 with a result, or 1 with `{"error": {"code", "message"}}` or a traceback on stderr.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from types import ModuleType
from typing import Any

if __name__ == "__main__":  # -I hides this file's folder; its package lies two above
    sys.path.append(__file__.rsplit("/", 3)[0])

from runner.guest.beneath import Call, ToolError

TOOLS = "/run/tools"  # each tool's code by its digest, written by PID 1
_REQUEST, _RESULT = 3, 4


def load(folder: str) -> ModuleType:
    """The tool's main.py, as a module named `main`; its own folder can be imported from."""
    sys.path.insert(0, folder)
    path = f"{folder}/main.py"
    with open(path, "rb") as file:  # noqa: PTH123 (pathlib would cost each call its import)
        source = file.read()
    module = ModuleType("main")
    module.__file__ = path
    sys.modules["main"] = module
    exec(compile(source, path, "exec"), module.__dict__)  # noqa: S102 (this is the tool)
    return module


def put(value: Any, most: int) -> int:
    """Write the result; the exit status. A result that is no JSON, or too long, is an error."""
    status = 0
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        if len(data) > most:
            raise ValueError(f"the result is {len(data)} bytes; at most {most} are allowed")
    except (ValueError, TypeError, RecursionError) as error:
        data, status = json.dumps({"error": {"code": "result", "message": str(error)}}).encode(), 1
    with os.fdopen(_RESULT, "wb") as file:
        file.write(data)
    return status


def main() -> int:
    """Run one call; the exit status. SystemExit of the tool passes through."""
    os.set_inheritable(_RESULT, False)
    with os.fdopen(_REQUEST, "rb") as file:
        request = json.load(file)
    folder = f"{TOOLS}/{request['tool']}/{request['code_digest']}"
    call = Call(request["tool"], request.get("arguments", {}), request.get("roots", {}), folder)
    try:
        value = load(folder).run(call)
    except ToolError as error:
        put({"error": {"code": error.code, "message": str(error)}}, request["result"])
        return 1
    except Exception as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:  # our own frames say nothing about the tool
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace, limit=-12)
        return 1
    return 0 if value is None else put(value, request["result"])


if __name__ == "__main__":
    sys.exit(main())
