"""Runs inside a container: tries each system call of argv[1] (JSON) in a child and prints what came of it."""

import ctypes
import errno
import json
import mmap
import os
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)
TEXT = ctypes.create_string_buffer(b"/nonexistent/file")
ROOM = ctypes.create_string_buffer(4096)


def argument(value):
    if value == "text":
        return ctypes.c_void_p(ctypes.addressof(TEXT))
    if value == "room":
        return ctypes.c_void_p(ctypes.addressof(ROOM))
    if value == "self":
        return ctypes.c_long(os.getpid())
    if isinstance(value, str):
        return ctypes.c_char_p(value.encode())
    return ctypes.c_long(value)


def native(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[argument(value) for value in arguments])
    return result, ctypes.get_errno()


def int80(number, *_):
    """The 32-bit entry: mov eax, number; xor ebx..edx; int 0x80; cdqe; ret."""
    code = b"\x53\xb8" + number.to_bytes(4, "little") + b"\x31\xdb\x31\xc9\x31\xd2\xcd\x80\x48\x98\x5b\xc3"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    result = ctypes.CFUNCTYPE(ctypes.c_long)(address)()
    return (-1, -result) if -4096 < result < 0 else (result, 0)


def attempt(way, number, arguments):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        result, code = (int80 if way == "int80" else native)(number, *arguments)
        if result == 0 and number in (56, 435):  # the clone's own child
            os._exit(0)
        os.write(writing, (errno.errorcode.get(code, str(code)) if result == -1 else "ok").encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    said = os.read(reading, 100).decode()
    os.close(reading)
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else said


print(json.dumps({name: attempt(way, number, arguments) for name, way, number, arguments in json.loads(sys.argv[1])}))
