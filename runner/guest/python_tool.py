"""The process of a python tool's call: reads its arguments, runs `run(call)` of the tool's main.py, writes the result.

Descriptors: 0, 1, 2 as of any program; 3 holds the call as gate sent it (START in `runner/wire/guest.py`), 4 takes
the result as JSON. Exit status 0 with a result, or 1 with `{"error": {"code", "message"}}` or a traceback on stderr.

A launcher forks it (`Prepared`), having imported what `compile_main` found; where it cannot, it starts this file. What
the tool sees is the same: a fork leaves it nothing of another call, for its launcher has never held any.
"""

from __future__ import annotations

import atexit
import gc
import json
import marshal
import os
import sys
import time
import traceback
from types import ModuleType

if __name__ == "__main__":  # -I hides this file's folder; its package lies two above
    sys.path.append(__file__.rsplit("/", 3)[0])

from runner.guest.beneath import Call, ToolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Set
    from typing import Any, NoReturn

PACKAGES = "/usr/lib/python3/dist-packages"  # Debian's: what an image holds beside the standard library
TOOLS = "/run/tools"  # each tool's code by its digest, written by PID 1
_REQUEST, _RESULT = 3, 4
_INTERRUPTED = 130  # as shells say it
_TREE = 0x400  # compile() to a tree (ast.PyCF_ONLY_AST)


def compile_main(folder: str, kept: int) -> NoReturn:
    """Write to the descriptor `kept`: the modules that main.py names in imports, one a line, a NUL, its code. Nothing
    for a file that does not compile: its call will say why."""
    sys.stderr = None  # a warning is for the call's reader
    with open(f"{folder}/main.py", "rb") as file:
        source = file.read()
    names, todo = set[str](), [compile(source, "main.py", "exec", _TREE, dont_inherit=True)]
    while todo:
        node: Any = todo.pop()
        if hasattr(node, "level"):  # from module import names: each of them may be a module too
            names |= {f"{node.module}{end}" for end in ("", *(f".{part.name}" for part in node.names))}
        elif hasattr(node, "names"):
            names |= {getattr(part, "name", "") for part in node.names}
        for field in node._fields:
            value = getattr(node, field, None)
            todo += [item for item in (value if isinstance(value, list) else [value]) if hasattr(item, "_fields")]
    code = compile(source, f"{folder}/main.py", "exec", dont_inherit=True)
    made = "\n".join(sorted(names)).encode() + b"\0" + marshal.dumps(code)
    if os.write(kept, made) != len(made):  # larger than a file may be here: half of it would be worse than nothing
        os.ftruncate(kept, 0)
    os._exit(0)


def load(folder: str, code: bytes = b"") -> ModuleType:
    """The tool's main.py, as a module named `main`; its own folder can be imported from, and the image's packages.
    `code` is what `compile_main` made of it."""
    sys.path.insert(0, folder)
    sys.path.append(PACKAGES)
    module = ModuleType("main")
    module.__file__ = f"{folder}/main.py"
    sys.modules["main"] = module
    if not code:
        with open(module.__file__, "rb") as file:
            source = file.read()
    # The tool's own code, made by `compile_main` behind these walls: it is run two lines on, whatever it is.
    ready = marshal.loads(code) if code else compile(source, module.__file__, "exec", dont_inherit=True)  # noqa: S302
    exec(ready, module.__dict__)  # noqa: S102 (this is the tool)
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


def take() -> dict[str, Any]:
    """The call, as gate sent it."""
    os.set_inheritable(_RESULT, False)
    request: dict[str, Any] = json.loads(os.pread(_REQUEST, os.fstat(_REQUEST).st_size, 0))
    os.close(_REQUEST)
    return request


def main(request: dict[str, Any], code: bytes = b"") -> int:
    """Run one call; the exit status. SystemExit of the tool passes through."""
    folder = f"{TOOLS}/{request['tool']}/{request['code_digest']}"
    call = Call(request["tool"], request.get("arguments", {}), request.get("roots", {}), folder)
    try:
        value = load(folder, code).run(call)
    except ToolError as error:
        put({"error": {"code": error.code, "message": str(error)}}, request["result"])
        return 1
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        while trace and trace.tb_frame.f_code.co_filename == __file__:  # our own frames say nothing about the tool
            trace = trace.tb_next
        traceback.print_exception(type(error), error, trace, limit=-12)
        return _INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    return 0 if value is None else put(value, request["result"])


class Prepared:
    """What a launcher has ready for each call of its tool, with the beginning and the end of an interpreter around it.

    `code` is what `compile_main` made, `asked` the modules that were imported for the tool."""

    def __init__(self, folder: str, code: bytes, asked: Set[str]) -> None:
        self._code = code
        # The tool's own module of that name comes first, as it would in a new interpreter.
        own = {entry.partition(".")[0] for entry in os.listdir(folder)}
        self._shadowed = [name for name in asked if name.partition(".")[0] in own]
        self._before = sys.modules.keys() - self._shadowed - {"__main__"}
        sys.argv[:] = [__file__]
        sys.modules["__main__"] = sys.modules[__name__]
        reader, writer = os.pipe()  # of the kind that a call's are
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            os.dup2(writer if number else reader, number)
            old = getattr(sys, name)
            as_old = {"encoding": old.encoding, "errors": old.errors, "newline": "\n", "closefd": False}
            new = open(number, "w" if number else "r", 1 if number == 2 else -1, **as_old)  # noqa: SIM115 (kept)
            new.buffer.raw.name = f"<{name}>"
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)
        os.close(reader)
        os.close(writer)

    def run(self) -> NoReturn:
        """The call whose descriptors are in place, in a process of its own."""
        status = 1
        try:
            request = take()
            os.environ.clear()
            os.environ.update(request.get("environment", {}))
            if "TZ" in os.environ:
                time.tzset()
            for name in self._shadowed:
                del sys.modules[name]
            status = main(request, self._code)
        except SystemExit as stop:
            status = _status(stop.code)
        except BaseException:
            traceback.print_exc()
        finally:
            self._end(status)

    def _end(self, status: int) -> NoReturn:
        """What an interpreter does at its end: wait for threads, call who asked for it, close what is open, flush."""
        try:
            if "threading" in sys.modules:
                sys.modules["threading"]._shutdown()
            atexit._run_exitfuncs()
            streams = {sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__}
            _flush(streams)
            own = [sys.modules.pop(name) for name in reversed(list(sys.modules)) if name not in self._before]
            for module in own:
                if isinstance(module, ModuleType) and module.__dict__ is not globals():  # one may have two names
                    _forget(module.__dict__)  # in this order files are written before they are closed
            gc.collect()
            _flush(streams)
        except BaseException:
            status = status or 120
        finally:
            os._exit(status)


def _forget(names: dict[str, Any]) -> None:
    """As an interpreter clears a module: its names become None, which what is called at the end looks for."""
    for name in sorted(names, key=lambda name: not name.startswith("_")):
        if name != "__builtins__":
            names[name] = None


def _flush(streams: Set[Any]) -> None:
    for stream in streams:
        if stream and not stream.closed:
            stream.flush()


def _status(code: object) -> int:
    """The exit status that sys.exit(code) stands for."""
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(take()))
