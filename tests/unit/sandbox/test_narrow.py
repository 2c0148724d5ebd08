"""The BPF of `seccomp_deny`, run by a small interpreter: refused calls, allowed ones, other ABIs."""

from __future__ import annotations

import struct

import pytest

from runner.errors import RunnerError
from runner.sandbox.narrow import compile_deny

X86_64, I386 = 0xC000_003E, 0x4000_0003
ALLOW, EPERM, KILL = 0x7FFF_0000, 0x0005_0001, 0x8000_0000
SOCKET, CONNECT, READ = 41, 42, 0


def answer(program: bytes, number: int, arch: int) -> int:
    """Run a classic BPF program over struct seccomp_data, the few instructions that libseccomp writes."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *[0] * 6)
    code = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    while True:
        operation, true, false, value = code[at]
        at += 1
        if operation == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif operation in (0x15, 0x25, 0x35):  # jump if equal, greater, greater or equal
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value}[operation]
            at += true if holds else false
        elif operation == 0x05:  # jump
            at += value
        else:
            assert operation == 0x06  # return
            return value


def test_named_calls_are_refused_and_the_rest_is_allowed():
    program = compile_deny(("socket", "connect"))
    assert [answer(program, number, X86_64) for number in (SOCKET, CONNECT, READ)] == [EPERM, EPERM, ALLOW]


def test_another_abi_is_no_way_around():
    program = compile_deny(("socket",))
    assert answer(program, READ, I386) == KILL
    assert answer(program, 0x4000_0000 | SOCKET, X86_64) in (KILL, EPERM)
    assert answer(program, 0x4000_0000 | READ, X86_64) == KILL


def test_nothing_to_refuse_is_no_program():
    assert compile_deny(()) == b""


def test_a_name_that_does_not_exist_is_refused():
    with pytest.raises(RunnerError, match="no system call 'conect'"):
        compile_deny(("socket", "conect"))
