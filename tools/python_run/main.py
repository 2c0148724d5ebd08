"""Runs the caller's code as `__main__` of this process; its output, exceptions and exit status are its own."""

import linecache
import site
import sys
import traceback
from types import ModuleType

NAME = "<code>"


def run(call):
    """Returns None: what the code prints is the answer. An uncaught exception or sys.exit ends the process."""
    code = call.arguments["code"]
    module = ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = [NAME, *call.arguments.get("args", [])]
    sys.path[:] = ["/workspace", *(folder for folder in sys.path if folder != call.folder)]
    site.main()  # packages that the image installed
    linecache.cache[NAME] = (len(code), None, code.splitlines(keepends=True), NAME)  # tracebacks show the source
    try:
        exec(compile(code, NAME, "exec", dont_inherit=True), module.__dict__)  # noqa: S102 (this is the tool)
    except Exception as error:
        trace = error.__traceback__.tb_next if error.__traceback__ else None  # not this frame
        sys.stdout.flush()
        traceback.print_exception(type(error), error, trace)
        sys.exit(1)
