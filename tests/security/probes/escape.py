"""Attempts to leave the walls, as data. Runs inside a container, as a program or as a python tool; prints JSON.

    python3 escape.py '{"neighbour": {…}, "other": {…}, "beside": {…}, "variables": […]}'

Standard library only. Each attempt is one act in a child of its own: what it returns, when that is anything at all,
is how far it came ("exposed"); an error or nothing is "contained"; a kernel that has no such thing is "absent".
Every act is harmless where it succeeds: invalid arguments, files opened for writing and not written, namespaces and
nodes that end with the child. Even so it refuses to run on a host: only in a PID namespace of its own, with no
network interface but loopback.

`"stage": true` is for the positive control, a privileged container without a filter: it puts there what a sandbox
must not hold (a neighbour, a Docker socket, a leaked folder, a set-uid program), so that each attempt can succeed.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import mmap
import os
import select
import shutil
import signal
import socket
import stat
import struct
import sys
import time
from typing import NamedTuple

MUST, SHOULD = "must", "should"
INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # the kernel's fixed inode number of it
REFUSED = (errno.EPERM, errno.EACCES, errno.EROFS)
MISSING = {
    errno.ENOSYS, errno.ENOENT, errno.ENODEV, errno.ENXIO, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT,
    errno.ESOCKTNOSUPPORT, errno.EOPNOTSUPP, errno.EPFNOSUPPORT, errno.ENOPROTOOPT,
}  # fmt: skip
ACT_S = 10  # an act that hangs is ended: it came to nothing

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
ROOM = ctypes.create_string_buffer(1 << 16)
TEXT = ctypes.create_string_buffer(b"/nonexistent/file")
context = {}


class Attempt(NamedTuple):
    """One thing to try. `control` says why the positive control cannot show it, where that is so."""

    id: str
    level: str
    what: str
    success: str
    act: object
    control: str = ""


ATTEMPTS = []


def attempt(name, level, what, success, act, control=""):
    ATTEMPTS.append(Attempt(name, level, what, success, act, control))


# --- how to act ---------------------------------------------------------------------------------------------


def raw(number, *arguments):
    """The system call's result. Raises OSError."""
    ctypes.set_errno(0)
    given = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = libc.syscall(ctypes.c_long(number), *given)
    if result == -1 and ctypes.get_errno():
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def answered(number, *arguments):
    """Whether the kernel itself answered: any answer but a refusal or an absence means that the call is open."""
    try:
        return f"returned {raw(number, *arguments)}"
    except OSError as error:
        if error.errno in REFUSED or error.errno == errno.ENOSYS:
            raise
        return f"answered {errno.errorcode[error.errno]}"


def call(number, *arguments):
    return lambda: answered(number, *arguments)


def int80(number, first=0, second=0):
    """The 32-bit entry: what it returned. mov eax; mov ebx; mov ecx; xor edx, edx; int 0x80; cdqe; ret."""
    code = b"\x53\xb8" + struct.pack("<I", number) + b"\xbb" + struct.pack("<I", first)
    code += b"\xb9" + struct.pack("<I", second) + b"\x31\xd2\xcd\x80\x48\x98\x5b\xc3"
    page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    result = ctypes.CFUNCTYPE(ctypes.c_long)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
    return f"returned {result}"


def opened(path, flags):
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY))
    return f"opened {path}"


def writable(*paths):
    """The first of these that opens for writing. Nothing is written."""
    return lambda: first(paths, lambda path: opened(path, os.O_WRONLY))


def readable(*paths):
    """The first of these that gives bytes."""

    def look(path):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(file, 64) and f"read {path}"
        finally:
            os.close(file)

    return lambda: first(paths, look)


def listable(*paths):
    """The first of these folders that lists anything."""
    return lambda: first(paths, lambda path: os.listdir(path) and f"listed {path}")


def first(things, act):
    """What the act returns for the first thing with which it succeeds; the last error when none does."""
    failure = None
    for thing in things:
        try:
            if found := act(thing):
                return found
        except OSError as error:
            failure = failure if failure and failure.errno in REFUSED else error
    if failure:
        raise failure
    return None


def sockets(family, kinds=(1, 2, 3, 4, 5, 6, 10), protocols=(0,)):
    def make(pair):
        raw(3, raw(41, family, *pair))
        return f"made type {pair[0]} protocol {pair[1]}"

    return lambda: first([(kind, protocol) for kind in kinds for protocol in protocols], make)


def others():
    """Processes that are not ours: PID 1, launchers, calls beside us."""
    ours, parents = set(), {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat") as file:
                parents[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    pid = os.getpid()
    while pid > 1 and pid not in context["above"]:
        ours.add(pid)
        pid = parents.get(pid, 0)
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in ours} - ours
        ours |= more
        grown = bool(more)
    return sorted(set(parents) - ours)


def neighbour():
    return context["neighbour"]["pid"]


def launcher():
    return context["above"][0]


def of_others(name, act):
    """The act on that file of every process that is not ours."""
    return lambda: first([f"/proc/{pid}/{name}" for pid in others()], act)


# --- E03: other system call tables --------------------------------------------------------------------------

TABLE = "the call returns instead of ending the process"
attempt("abi.i386-getpid", MUST, "getpid by int 0x80", TABLE, lambda: int80(20))
attempt("abi.i386-socketcall", MUST, "socketcall(SYS_SOCKET) by int 0x80", TABLE, lambda: int80(102, 1))
attempt("abi.i386-mount", MUST, "mount by int 0x80", TABLE, lambda: int80(21))
attempt("abi.i386-ptrace", MUST, "ptrace(TRACEME) by int 0x80", TABLE, lambda: int80(26))
attempt("abi.i386-setuid", MUST, "setuid32(0) by int 0x80", TABLE, lambda: int80(213, 0))
NO_X32 = "this kernel is built without x32, so nothing answers there"
attempt("abi.x32-getpid", MUST, "getpid of the x32 table", TABLE, call(0x4000_0000 | 39), NO_X32)
attempt("abi.x32-ptrace", MUST, "ptrace of the x32 table", TABLE, call(0x4000_0000 | 521, 0, 0, 0, 0), NO_X32)
attempt(
    "abi.x32-native-number", MUST, "bpf's native number with the x32 bit", TABLE, call(0x4000_0000 | 321, 99), NO_X32
)

# --- E04: sockets -------------------------------------------------------------------------------------------

MADE = "a socket is made"
for _name, _family in {
    "ax25": 3, "ipx": 4, "appletalk": 5, "netrom": 6, "bridge": 7, "atmpvc": 8, "x25": 9, "rose": 11, "decnet": 12,
    "key": 15, "packet": 17, "ash": 18, "econet": 19, "atmsvc": 20, "rds": 21, "irda": 23, "pppox": 24, "wanpipe": 25,
    "llc": 26, "infiniband": 27, "mpls": 28, "can": 29, "tipc": 30, "bluetooth": 31, "iucv": 32, "rxrpc": 33,
    "isdn": 34, "phonet": 35, "ieee802154": 36, "caif": 37, "alg": 38, "nfc": 39, "vsock": 40, "kcm": 41,
    "qipcrtr": 42, "smc": 43, "xdp": 44, "mctp": 45,
}.items():  # fmt: skip
    attempt(f"socket.{_name}", MUST, f"a socket of family {_family}, any type", MADE, sockets(_family))
attempt("socket.netlink-route", MUST, "a netlink route socket", MADE, sockets(16, (2, 3)))
attempt(
    "socket.netlink-others", MUST, "a netlink socket of any other protocol", MADE, sockets(16, (2, 3), range(1, 33))
)
for _name, _family in {"inet": 2, "inet6": 10}.items():
    attempt(f"socket.{_name}-raw", MUST, "a raw socket", MADE, sockets(_family, (3,), (1, 58, 255)))
    attempt(f"socket.{_name}-ping", MUST, "an ICMP datagram socket", MADE, sockets(_family, (2,), (1, 58)))
    attempt(f"socket.{_name}-sctp", MUST, "SCTP", MADE, sockets(_family, (1, 5), (132,)))
    attempt(f"socket.{_name}-mptcp", MUST, "MPTCP", MADE, sockets(_family, (1,), (262,)))
    attempt(f"socket.{_name}-udplite", SHOULD, "UDP-Lite", MADE, sockets(_family, (2,), (136,)))
    attempt(f"socket.{_name}-dccp-l2tp", MUST, "DCCP or L2TP", MADE, sockets(_family, (2, 6), (33, 115)))
attempt("socket.unix-packets", SHOULD, "AF_UNIX sequenced packets or raw", MADE, sockets(1, (3, 5)))


def option(family, level, name, value=b"\1\0\0\0"):
    def act():
        with socket.socket(family, socket.SOCK_STREAM) as made:
            return answered(54, made.fileno(), level, name, value, len(value))

    return act


SET = "the kernel itself answers"
attempt("option.bpf-filter", MUST, "attach a BPF program to a socket", SET, option(2, 1, 26, bytes(16)))
attempt("option.ebpf", MUST, "attach an eBPF program to a socket", SET, option(2, 1, 50))
attempt("option.reuseport-bpf", MUST, "attach BPF to a port's group", SET, option(2, 1, 51, bytes(16)))
attempt("option.bind-device", SHOULD, "bind a socket to an interface", SET, option(2, 1, 25, b"lo\0\0"))
attempt("option.ulp-tls", MUST, "kernel TLS on a socket", SET, option(2, 6, 31, b"tls"))
attempt("option.congestion", SHOULD, "load a congestion control", SET, option(2, 6, 13, b"cubic"))
attempt("option.md5", SHOULD, "TCP signatures", SET, option(2, 6, 14, bytes(216)))
attempt("option.repair", MUST, "rewrite a connection's state", SET, option(2, 6, 19))
attempt("option.netfilter", MUST, "replace netfilter's tables", SET, option(2, 0, 64, bytes(96)))
attempt("option.netfilter6", MUST, "replace netfilter's IPv6 tables", SET, option(10, 41, 64, bytes(96)))
attempt("option.mark", MUST, "mark packets for the host's routing", SET, option(2, 1, 36))
attempt("option.bind-index", MUST, "bind a socket to an interface by number", SET, option(2, 1, 62))
attempt("option.transparent", MUST, "use addresses that are not ours", SET, option(2, 0, 19))
attempt("option.free-bind", SHOULD, "bind addresses that nobody has", SET, option(2, 0, 15))
attempt("option.fast-open", SHOULD, "offer TCP Fast Open", SET, option(2, 6, 23))
attempt("option.multicast", SHOULD, "multicast filters", SET, option(2, 0, 41, bytes(16)))
attempt("option.alg", MUST, "options of AF_ALG's level", SET, option(2, 279, 1))
attempt("option.get-netfilter", MUST, "read netfilter's tables", SET, lambda: get_option(0, 64))
attempt("option.zerocopy-receive", SHOULD, "map received pages", SET, lambda: get_option(6, 35))


def get_option(level, name):
    with socket.socket() as made:
        size = ctypes.c_int(64)
        return answered(55, made.fileno(), level, name, ROOM, ctypes.byref(size))


# --- E05: namespaces ----------------------------------------------------------------------------------------

SIGCHLD = 17
FLAGS = {
    "mount": 0x20000, "cgroup": 0x2000000, "uts": 0x4000000, "ipc": 0x8000000, "user": 0x10000000, "pid": 0x20000000,
    "net": 0x40000000, "time": 0x80,
}  # fmt: skip


def cloned(flags):
    def act():
        child = raw(56, flags | SIGCHLD, 0, 0, 0, 0)
        if not child:
            os._exit(0)
        with contextlib.suppress(ChildProcessError):  # with CLONE_PARENT it is our parent's
            os.waitpid(child, 0)
        return "cloned"

    return act


def cloned3(flags):
    def act():
        child = answered(435, struct.pack("=11Q", flags, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, 0), 88)
        if child == "returned 0":
            os._exit(0)
        return child

    return act


for _name, _flag in FLAGS.items():
    attempt(f"namespace.unshare-{_name}", MUST, f"unshare a {_name} namespace", "a new namespace", call(272, _flag))
    if _name != "time":  # clone cannot: its bit is part of the exit signal there
        attempt(f"namespace.clone-{_name}", MUST, f"clone into a {_name} namespace", "a child in it", cloned(_flag))
attempt("namespace.clone3-user", MUST, "clone3 into a user namespace", "a child in it", cloned3(FLAGS["user"]))
attempt("namespace.clone3", SHOULD, "clone3 at all: no filter can see its flags", "a child", cloned3(0))
attempt("namespace.clone-parent", SHOULD, "a child that is its parent's sibling", "a child", cloned(0x8000))
for _name in ("net", "mnt", "pid", "user", "ipc"):
    attempt(
        f"namespace.setns-{_name}", MUST, f"enter a {_name} namespace by descriptor", SET,
        lambda name=_name: answered(308, os.open(f"/proc/self/ns/{name}", os.O_RDONLY), 0),
    )  # fmt: skip

# --- E06: kernel surface ------------------------------------------------------------------------------------

for _name, _arguments in {
    "io-uring-setup": (425, 0, 0), "io-uring-enter": (426, -1, 0, 0, 0, 0, 0), "io-uring-register": (427, -1, 0, 0, 0),
    "aio": (206, 0, 0), "bpf": (321, 99, 0, 0), "bpf-load": (321, 5, ROOM, 128), "userfaultfd": (323, -1),
    "perf": (298, 0, 0, 0, 0, 0), "add-key": (248, 0, 0, 0, 0, 0), "request-key": (249, 0, 0, 0, 0),
    "keyctl": (250, 0, -3, 0), "kexec": (246, 0, 17, 0, 0), "kexec-file": (320, -1, -1, 0, 0, 0xFF),
    "fanotify": (300, -1, -1), "lookup-dcookie": (212, 0, 0, 0), "iopl": (172, 3), "ioperm": (173, 0, 1, 1),
    "modify-ldt": (154, 0, ROOM, 16), "remap-file-pages": (216, 0, 0, 0, 0, 0), "uselib": (134, TEXT),
    "seccomp-listener": (317, 1, 8, 0), "ioctl-tiocsti": (16, 1, 0x5412, ROOM), "ioctl-tiocsetd": (16, 1, 0x5423, ROOM),
    "ioctl-tioclinux": (16, 1, 0x541C, ROOM), "ioctl-fs-label": (16, 1, 0x41009432, ROOM),
}.items():  # fmt: skip
    attempt(f"kernel.{_name}", MUST, f"{_name.replace('-', ' ')}", SET, call(*_arguments))
NO_MODULES = "this kernel may be built without modules"
attempt("kernel.init-module", MUST, "load a module", SET, call(175, 0, 0, 0), NO_MODULES)
attempt("kernel.finit-module", MUST, "load a module by descriptor", SET, call(313, -1, 0, 0), NO_MODULES)
attempt("kernel.delete-module", MUST, "unload a module", SET, call(176, TEXT, 0x800), NO_MODULES)
for _name, _arguments in {
    "splice": (275, -1, 0, -1, 0, 0, 0), "tee": (276, -1, -1, 0, 0), "vmsplice": (278, -1, 0, 0, 0),
    "memfd-secret": (447, 0), "mincore": (27, 0, 0, 0), "mlock": (149, 0, 0), "sync": (162,), "syncfs": (306, -1),
    "mbind": (237, 0, 0, 0, 0, 0, 0), "set-mempolicy": (238, 0, 0, 0), "pkey-alloc": (330, 0, 0),
    "personality": (135, 0x40000), "prctl-tsc": (157, 25, ROOM, 0, 0, 0), "prctl-mm": (157, 35, 1, 0, 0, 0),
    "prctl-spec": (157, 53, 0, 0, 0, 0), "prctl-merge": (157, 67, 1, 0, 0, 0), "get-robust-list": (274, 0, ROOM, ROOM),
    "madvise-merge": (28, 0, 0, 12), "madvise-collapse": (28, 0, 0, 25), "mq-open": (240, 0, 0, 0, 0),
}.items():  # fmt: skip
    _control = "needs CAP_SYS_RESOURCE, which not every host can give" if _name == "prctl-mm" else ""
    attempt(f"surface.{_name}", SHOULD, f"{_name.replace('-', ' ')}", SET, call(*_arguments), _control)


def lend_pages():
    """sendfile into a pipe lends page-cache pages, as splice does."""
    _, writing = os.pipe()
    return f"lent {raw(40, writing, os.open('/etc/passwd', os.O_RDONLY), 0, 16)} bytes"


def out_of_band():
    """A path into the kernel from inside browsers' sandboxes."""
    ours, theirs = socket.socketpair()
    ours.send(b"x", socket.MSG_OOB)
    return f"sent {theirs.recv(1, socket.MSG_OOB)!r}"


attempt("surface.out-of-band", SHOULD, "send out-of-band data between local sockets", "it arrives", out_of_band)
attempt("surface.sendfile-pipe", SHOULD, "lend page-cache pages to a pipe by sendfile", SET, lend_pages)

# --- mounts, clocks, the machine ----------------------------------------------------------------------------

for _name, _arguments in {
    "mount": (165, 0, 0, 0, 0, 0), "umount": (166, 0, 0), "pivot-root": (155, 0, 0), "chroot": (161, 0),
    "fsopen": (430, 0, 0), "fsmount": (432, -1, -1, 0), "fsconfig": (431, -1, 99, 0, 0, 0), "fspick": (433, -1, 0, -1),
    "open-tree": (428, -1, 0, -1), "move-mount": (429, -1, 0, -1, 0, 0), "mount-setattr": (442, -1, 0, -1, 0, 0),
    "name-to-handle": (303, -1, 0, 0, 0, 0), "open-by-handle": (304, -1, 0, 0), "quotactl": (179, 0, 0, 0, 0),
    "quotactl-fd": (443, -1, 0, 0, 0), "swapon": (167, 0, -1), "swapoff": (168, 0), "acct": (163, TEXT),
    "reboot": (169, 0, 0, 0, 0), "syslog": (103, 10, 0, 0), "vhangup": (153,), "settimeofday": (164, 0, 0),
    "clock-settime": (227, 0, 0), "adjtimex": (159, 0), "clock-adjtime": (305, 0, 0), "sethostname": (170, 0, -1),
    "setdomainname": (171, 0, -1), "setuid": (105, 0), "setgid": (106, 0), "setresuid": (117, 0, 0, 0),
    "setgroups": (116, 0, 0), "setfsuid": (122, 0), "capset": (126, 0, 0),
}.items():  # fmt: skip
    attempt(f"system.{_name}", MUST, f"{_name.replace('-', ' ')}", SET, call(*_arguments))


def node(kind, device, then_open):
    def act():
        path = f"{context['scratch']}/node-{os.getpid()}"
        os.mknod(path, kind | 0o600, device)
        try:
            return opened(path, os.O_RDWR) if then_open else "made"
        finally:
            os.unlink(path)

    return act


attempt("system.mknod-null", MUST, "make /dev/null anew and open it", "opened", node(stat.S_IFCHR, 0x103, True))
attempt("system.mknod-memory", MUST, "make the node of physical memory", "made", node(stat.S_IFCHR, 0x101, False))
attempt("system.mknod-disk", MUST, "make the node of a block device", "made", node(stat.S_IFBLK, 0x700, False))
attempt("system.mknod-whiteout", SHOULD, "make an overlay whiteout", "made", node(stat.S_IFCHR, 0, False))


def by_handle():
    """Open a file by its inode, past every mount and Landlock rule: a container's way to the host's disk."""
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0) + bytes(128))
    mount = ctypes.c_int()
    raw(303, -100, b"/etc/passwd", handle, ctypes.byref(mount), 0)
    return f"opened {raw(304, os.open('/etc', os.O_RDONLY), handle, 0)}"


attempt("system.by-handle", MUST, "open a file by its handle", "opened", by_handle, "overlayfs gives no handles")

# --- E07 and files of the host ------------------------------------------------------------------------------

WRITTEN = "it opens for writing"
for _name, _paths in {
    "core-pattern": ("/proc/sys/kernel/core_pattern",),
    "modprobe": ("/proc/sys/kernel/modprobe",),
    "sysctl": ("/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/randomize_va_space", "/proc/sys/fs/file-max"),
    "sysctl-net": ("/proc/sys/net/ipv4/ip_forward",),
    "last-pid": ("/proc/sys/kernel/ns_last_pid",),
    "sysrq": ("/proc/sysrq-trigger",),
    "irq": ("/proc/irq/default_smp_affinity",),
    "binfmt": ("/proc/sys/fs/binfmt_misc/register",),
    "uevent-helper": ("/sys/kernel/uevent_helper",),
    "hugepages": ("/sys/kernel/mm/transparent_hugepage/enabled",),
    "power": ("/sys/power/state", "/sys/power/mem_sleep"),
    "release-agent": ("/sys/fs/cgroup/memory/release_agent", "/sys/fs/cgroup/pids/release_agent"),
    "cgroup-limit": ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory.max"),
    "cgroup-procs": ("/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"),
    "cgroup-devices": ("/sys/fs/cgroup/devices/devices.allow",),
    "own-oom-score": ("/proc/self/oom_score_adj",),
    "own-attributes": ("/proc/self/attr/current", "/proc/self/attr/exec"),
    "own-uid-map": ("/proc/self/uid_map", "/proc/self/setgroups"),
    "own-timerslack": ("/proc/self/timerslack_ns", "/proc/self/comm"),
    "root": ("/etc/passwd", "/etc/hosts", "/etc/resolv.conf", "/usr/bin/env"),
}.items():
    _control = {"binfmt": "not mounted", "uevent-helper": "not built in", "power": "not built in"}.get(_name, "")
    _control = {"last-pid": "not built in", "release-agent": "only in the root of a hierarchy"}.get(_name, _control)
    attempt(f"write.{_name}", MUST, f"open {_paths[0]} for writing", WRITTEN, writable(*_paths), _control)


def make_cgroup():
    def act(folder):
        os.mkdir(folder)
        os.rmdir(folder)
        return f"made {folder}"

    return first([f"/sys/fs/cgroup/{name}probe" for name in ("memory/", "pids/", "")], act)


attempt("write.cgroup-folder", MUST, "make a cgroup", "made", make_cgroup)
for _name, _paths in {
    "root-folder": ("/probe", "/usr/bin/probe", "/etc/probe", "/var/probe"),
    "dev-folder": ("/dev/probe", "/dev/shm/../probe"),
    "tool-code": ("/run/tools/probe",),
    "control-folder": ("/run/runner/probe",),
}.items():
    attempt(
        f"write.{_name}", MUST, f"make a file at {_paths[0]}", "made",
        lambda paths=_paths: first(paths, lambda path: opened(path, os.O_CREAT | os.O_WRONLY)),
    )  # fmt: skip

READ = "it gives bytes"
for _name, _level, _paths in (
    ("kcore", MUST, ("/proc/kcore",)),
    ("kmsg", MUST, ("/proc/kmsg", "/dev/kmsg")),
    ("kallsyms", MUST, ("/proc/kallsyms",)),
    ("keys", MUST, ("/proc/keys", "/proc/key-users")),
    ("page-flags", MUST, ("/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup")),
    ("kernel-memory", MUST, ("/proc/vmallocinfo", "/proc/slabinfo", "/proc/pagetypeinfo", "/proc/iomem")),
    ("memory-map", SHOULD, ("/proc/buddyinfo", "/proc/zoneinfo", "/proc/ioports")),
    ("boot-line", SHOULD, ("/proc/cmdline",)),
    ("interrupts", SHOULD, ("/proc/interrupts", "/proc/softirqs")),
    ("pressure", SHOULD, ("/proc/pressure/cpu", "/proc/pressure/io", "/proc/pressure/memory")),
    ("timers", SHOULD, ("/proc/timer_list", "/proc/sched_debug", "/proc/schedstat")),
    ("modules", SHOULD, ("/proc/modules", "/proc/config.gz")),
    ("disks", SHOULD, ("/proc/partitions", "/proc/diskstats", "/proc/swaps", "/proc/mdstat")),
    ("locks", SHOULD, ("/proc/locks",)),
    ("host-paths", SHOULD, ("/proc/self/mountinfo",)),
    ("load", SHOULD, ("/proc/loadavg", "/proc/stat", "/proc/meminfo", "/proc/uptime")),
    ("boot-id", SHOULD, ("/proc/sys/kernel/random/boot_id",)),
    ("firmware", MUST, ("/sys/firmware/acpi/tables/DSDT", "/sys/firmware/dmi/tables/DMI")),
    ("hardware-ids", SHOULD, ("/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/sys_vendor")),
    ("host-uids", SHOULD, ("/etc/shadow", "/etc/gshadow")),
):
    _control = {
        "locks": "there is a line only while somebody holds a lock",
        "firmware": "a machine without such tables",
        "hardware-ids": "a machine without such tables",
    }.get(_name, "")
    attempt(f"read.{_name}", _level, f"read {_paths[0]}", READ, readable(*_paths), _control)
LISTED = "it lists anything"
for _name, _level, _paths in (
    ("sys-kernel", MUST, ("/sys/kernel", "/sys/module", "/sys/kernel/debug", "/sys/kernel/tracing")),
    ("sys-block", SHOULD, ("/sys/block", "/sys/class/block")),
    ("sys-power", SHOULD, ("/sys/class/net", "/sys/devices/system/cpu", "/sys/bus")),
    ("cgroups", SHOULD, ("/sys/fs/cgroup",)),
    ("control-folder", MUST, ("/run/runner",)),
    ("queues", SHOULD, ("/dev/mqueue",)),
):
    _control = "an empty folder where nobody queues" if _name == "queues" else ""
    attempt(f"list.{_name}", _level, f"list {_paths[0]}", LISTED, listable(*_paths), _control)

# --- devices ------------------------------------------------------------------------------------------------

for _name, _paths in {
    "memory": ("/dev/mem", "/dev/kmem", "/dev/port"),
    "kernel-log": ("/dev/kmsg",),
    "tun": ("/dev/net/tun", "/dev/tun"),
    "fuse": ("/dev/fuse",),
    "loop": ("/dev/loop-control", "/dev/loop0"),
    "virtual-machines": ("/dev/kvm", "/dev/vsock", "/dev/vhost-vsock", "/dev/vhost-net"),
    "input": ("/dev/uinput", "/dev/input/event0", "/dev/rfkill"),
    "userfaultfd": ("/dev/userfaultfd",),
    "terminals": ("/dev/ptmx", "/dev/pts/ptmx", "/dev/tty", "/dev/console", "/dev/tty0"),
}.items():
    _control = "" if _name in ("kernel-log", "terminals") else "a machine without it"
    attempt(
        f"device.{_name}", MUST, f"open {_paths[0]}", "opened",
        lambda paths=_paths: first(paths, lambda path: opened(path, os.O_RDWR)), _control,
    )  # fmt: skip


def block_devices():
    found = [f"/dev/{name}" for name in os.listdir("/dev") if stat.S_ISBLK(os.stat(f"/dev/{name}").st_mode)]
    return first(found, lambda path: opened(path, os.O_RDONLY))


attempt("device.disk", MUST, "open any block device", "opened", block_devices)

# --- E08: sockets of the host -------------------------------------------------------------------------------

SOCKETS = (
    "/run/docker.sock", "/var/run/docker.sock", "/run/containerd/containerd.sock", "/run/podman/podman.sock",
    "/run/crio/crio.sock", "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/runner/control.sock",
    "/run/toolrunner/agent.sock", "/run/toolrunner/admin.sock",
)  # fmt: skip


def connected(path, kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_UNIX, kind) as made:
        made.settimeout(2)
        made.connect(path)
        return f"connected to {path!r}"


def every_socket():
    """Any socket file in sight that is not our own task's."""
    for top, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if f"{top}/{name}" not in ("//proc", "//sys", "//workspace")]
        for name in files:
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.lstat(f"{top}/{name}").st_mode):
                    return connected(f"{top}/{name}")
    return None


def abstract_sockets():
    """Every abstract socket in sight. Reading the table is no way in; connecting is."""
    with open("/proc/net/unix") as file:
        names = {line.split()[7] for line in file.read().splitlines()[1:] if len(line.split()) > 7}
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    wanted = [(name, kind) for name in sorted(names) if name.startswith("@") for kind in kinds]
    return first(wanted, lambda each: connected("\0" + each[0][1:], each[1]))


attempt(
    "socket-file.docker",
    MUST,
    "connect to a container engine or daemon",
    "connected",
    lambda: first(SOCKETS, connected),
)
attempt("socket-file.any", MUST, "connect to any socket file outside the workspace", "connected", every_socket)
attempt("socket-file.abstract", MUST, "connect to any abstract socket in sight", "connected", abstract_sockets)

# --- E09: what was inherited --------------------------------------------------------------------------------


def descriptors():
    """Anything but pipes, memory and null devices."""
    wrong = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            plain = target.startswith(("pipe:", "/memfd:", "/dev/null", "/proc/")) or int(name) in context["own"]
            wrong += [] if plain else [f"{name} is {target}"]
    return ", ".join(wrong)


def through_descriptor():
    """A folder descriptor left open leads out of every mount: CVE-2024-21626."""
    return first(range(64), lambda number: os.listdir(f"/proc/self/fd/{number}/..") and f"through {number}")


attempt("inherited.descriptors", MUST, "find a descriptor of somebody else's", "a socket, file or folder", descriptors)
attempt("inherited.folder", MUST, "leave through a folder's descriptor", "a listing", through_descriptor)
attempt(
    "inherited.cwd", MUST, "start elsewhere than in the workspace", "another folder",
    lambda: context["cwd"] if context["cwd"] != "/workspace" else None,
)  # fmt: skip
attempt(
    "inherited.environment", MUST, "find an unexpected variable", "its name",
    lambda: sorted(
        set(os.environ) - {"HOME", "LANG", "LC_CTYPE", "PATH", "PWD", "TMPDIR", "SHLVL", "_", "OLDPWD"}
        - set(context.get("variables", ()))
    ),
)  # fmt: skip
attempt("inherited.signal-mask", SHOULD, "start with signals blocked or ignored", "a set", lambda: inherited_signals())
attempt("inherited.group", SHOULD, "belong to a further group", "its number", lambda: extra_groups())


def inherited_signals():
    with open("/proc/self/status") as file:
        held = dict(line.split(":\t") for line in file.read().splitlines() if ":\t" in line)
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are the C library's own, which sets them when it needs them.
    ignored = int(held["SigIgn"], 16) & ~(1 << 12 | 1 << 24 | 1 << 31 | 1 << 32)
    return f"blocked {held['SigBlk']}, ignored {ignored:x}" if int(held["SigBlk"], 16) or ignored else None


def extra_groups():
    return [number for number in os.getgroups() if number != os.getgid()]


# --- privileges ---------------------------------------------------------------------------------------------


def capabilities():
    with open("/proc/self/status") as file:
        held = [line for line in file.read().splitlines() if line.startswith("Cap")]
    return [line for line in held if int(line.split()[1], 16)]


def set_uid_programs(mark):
    found = []
    for top, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if f"{top}/{name}" not in ("//proc", "//sys")]
        found += [f"{top}/{name}" for name in files if mark(f"{top}/{name}")]
    return found


def is_set_uid(path):
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_mode & 0o6000 and found.st_uid != os.getuid()


def has_capability(path):
    try:
        return bool(os.getxattr(path, "security.capability", follow_symlinks=False))
    except OSError:
        return False


def own_set_uid():
    """A set-uid program of our own making: is it root when it runs?"""
    path = f"{context['scratch']}/set-uid-{os.getpid()}"
    shutil.copyfile("/bin/cat", path)
    try:
        os.chmod(path, 0o6755)
        os.chown(path, 0, 0)
        return "made one of root's"
    finally:
        os.unlink(path)


def give_capability():
    path = f"{context['scratch']}/capable-{os.getpid()}"
    shutil.copyfile("/bin/cat", path)
    try:
        os.setxattr(path, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0))
        return "given"
    finally:
        os.unlink(path)


attempt("privilege.capabilities", MUST, "hold a capability", "a set", capabilities)
attempt("privilege.root", MUST, "be root", "uid 0", lambda: 0 in (os.getuid(), os.geteuid(), os.getgid(), os.getegid()))
attempt("privilege.set-uid", SHOULD, "find a set-uid program", "its path", lambda: set_uid_programs(is_set_uid)[:3])
attempt(
    "privilege.file-capability",
    SHOULD,
    "find one with capabilities",
    "its path",
    lambda: set_uid_programs(has_capability)[:3],
)
attempt("privilege.own-set-uid", MUST, "make a set-uid program of root's", "made", own_set_uid)
attempt("privilege.give-capability", MUST, "give a file a capability", "given", give_capability)
attempt("privilege.chown", MUST, "give a file away", "given", lambda: give_away())
attempt("privilege.trusted-attribute", MUST, "set an overlay's own attribute", "set", lambda: trusted_attribute())
attempt(
    "privilege.new-privileges",
    MUST,
    "be able to gain privileges",
    "no_new_privs is off",
    lambda: not libc.prctl(39, 0, 0, 0, 0),
)
attempt("privilege.realtime", MUST, "run at real-time priority", SET, call(144, 0, 1, ROOM))
attempt("privilege.deadline", MUST, "choose a scheduler class", SET, call(314, 0, ROOM, 0))
attempt("privilege.nice", SHOULD, "run before others", "a lower number", lambda: os.nice(-5) < 0 and "raised")
attempt("privilege.io-priority", SHOULD, "change I/O priority", SET, call(251, 1, 0, 0x2000))
attempt(
    "privilege.limits", MUST, "raise a hard limit", "raised", lambda: raise_limits(),
    "needs CAP_SYS_RESOURCE, which not every host can give",
)  # fmt: skip
attempt(
    "privilege.core-limit",
    SHOULD,
    "leave the core limit at which no dump handler runs",
    "another limit",
    lambda: core_limit(),
)


def give_away():
    path = f"{context['scratch']}/given-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    try:
        os.chown(path, 12345, 12345)
        return "given"
    finally:
        os.unlink(path)


def trusted_attribute():
    path = f"{context['scratch']}/trusted-{os.getpid()}"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    try:
        os.setxattr(path, "trusted.overlay.opaque", b"y")
        return "set"
    finally:
        os.unlink(path)


def raise_limits():
    import resource

    raised = []
    for name in ("CORE", "NOFILE", "FSIZE", "MEMLOCK", "MSGQUEUE", "NICE", "RTPRIO", "CPU"):
        limit = getattr(resource, f"RLIMIT_{name}")
        soft, hard = resource.getrlimit(limit)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (soft, hard + 1 if hard >= 0 else hard))
            raised += [name] if hard >= 0 and resource.getrlimit(limit)[1] > hard else []
    return raised


def core_limit():
    """A piped core pattern of the host runs its handler at every limit but 1, 0 included: the host's root would read
    what a tool left in its memory."""
    import resource

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    return None if limits == (1, 1) else f"limits {limits}"


# --- other processes of the sandbox: supervisor, launcher, calls beside this one ----------------------------

ALLOWED = "the kernel allows it"
QUEUED = struct.pack("=3i", 0, 0, -1).ljust(128, b"\0")  # si_code SI_QUEUE: as a program sends it


def signalled(pid):
    def act():
        os.kill(pid(), 0)
        return f"may signal {pid()}"

    return act


def by_pidfd(pid):
    def act():
        raw(424, raw(434, pid(), 0), 0, 0, 0)
        return f"may signal {pid()}"

    return act


def by_owner(pid):
    """A pipe that sends its owner a signal of our choice when it is written."""

    def act():
        reading, writing = os.pipe()
        fcntl.fcntl(reading, fcntl.F_SETOWN, pid())
        fcntl.fcntl(reading, 10, signal.SIGUSR2)  # F_SETSIG; peers block it, so that it stays pending
        fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        before = pending(pid())
        os.write(writing, b"x")
        time.sleep(0.05)
        return before != pending(pid()) and "a signal arrived"

    return act


def pending(pid):
    with open(f"/proc/{pid}/status") as file:
        return [line for line in file.read().splitlines() if line.startswith(("ShdPnd", "SigPnd"))]


for _name, _pid in (("supervisor", lambda: 1), ("launcher", launcher), ("neighbour", neighbour)):
    _level = SHOULD if _name == "launcher" else MUST
    attempt(f"process.signal-{_name}", _level, f"signal the {_name}", ALLOWED, signalled(_pid))
    attempt(f"process.pidfd-{_name}", _level, f"signal the {_name} by pidfd", ALLOWED, by_pidfd(_pid))
    attempt(
        f"process.queue-{_name}",
        _level,
        f"queue a signal to the {_name}",
        SET,
        lambda pid=_pid: answered(129, pid(), 0, QUEUED),
    )
    attempt(
        f"process.ptrace-{_name}", MUST, f"trace the {_name}", SET, lambda pid=_pid: answered(101, 0x4206, pid(), 0, 0)
    )
    attempt(
        f"process.read-memory-{_name}", MUST, f"read the {_name}'s memory", SET,
        lambda pid=_pid: answered(310, pid(), ROOM, 0, ROOM, 0, 0),
    )  # fmt: skip
    attempt(
        f"process.write-memory-{_name}", MUST, f"write the {_name}'s memory", SET,
        lambda pid=_pid: answered(311, pid(), ROOM, 0, ROOM, 0, 0),
    )  # fmt: skip
    attempt(
        f"process.take-descriptor-{_name}",
        MUST,
        f"take a descriptor of the {_name}",
        SET,
        lambda pid=_pid: answered(438, raw(434, pid(), 0), 0, 0),
    )
    attempt(
        f"process.compare-{_name}",
        SHOULD,
        f"compare with the {_name}",
        SET,
        lambda pid=_pid: answered(312, os.getpid(), pid(), 0, 0, 0),
    )
    attempt(
        f"process.limits-{_name}",
        MUST,
        f"change the {_name}'s limits",
        SET,
        lambda pid=_pid: answered(302, pid(), 7, 0, ROOM),
    )
    attempt(
        f"process.priority-{_name}", MUST, f"slow the {_name} down", SET, lambda pid=_pid: answered(141, 0, pid(), 0)
    )
    attempt(
        f"process.affinity-{_name}",
        MUST,
        f"move the {_name} to one core",
        SET,
        lambda pid=_pid: answered(203, pid(), 8, struct.pack("Q", 3)),
    )
    attempt(
        f"process.io-priority-{_name}",
        MUST,
        f"slow the {_name}'s I/O",
        SET,
        lambda pid=_pid: answered(251, 1, pid(), 0x6007),
    )
    attempt(
        f"process.scheduler-{_name}",
        MUST,
        f"make the {_name} idle",
        SET,
        lambda pid=_pid: answered(144, pid(), 5, bytes(8)),
    )
    attempt(
        f"process.group-{_name}",
        SHOULD,
        f"move the {_name} to a process group",
        SET,
        lambda pid=_pid: moved_group(pid()),
    )
    attempt(
        f"process.robust-list-{_name}",
        SHOULD,
        f"find the {_name}'s addresses",
        SET,
        lambda pid=_pid: answered(274, pid(), ROOM, ROOM),
    )
    attempt(
        f"process.move-pages-{_name}",
        SHOULD,
        f"move the {_name}'s memory",
        SET,
        lambda pid=_pid: answered(279, pid(), 0, 0, 0, 0, 0),
    )
attempt(
    "process.owner-neighbour",
    MUST,
    "signal the neighbour through a pipe's owner",
    "a signal arrives",
    by_owner(neighbour),
)
attempt("process.priority-everybody", MUST, "slow every process of this uid down", SET, call(141, 2, 0, 0))


def moved_group(pid):
    try:
        os.setpgid(pid, pid)
    except ProcessLookupError:  # not a child: the kernel's own rule, filter or not
        return None
    return "moved"


NOT_OURS = "only the caller's own children can be moved"
ATTEMPTS[:] = [each._replace(control=NOT_OURS) if each.id.startswith("process.group-") else each for each in ATTEMPTS]

for _name, _level, _flags in (
    ("environ", MUST, os.O_RDONLY), ("mem", MUST, os.O_RDWR), ("maps", MUST, os.O_RDONLY), ("auxv", MUST, os.O_RDONLY),
    ("oom_score_adj", MUST, os.O_WRONLY), ("timerslack_ns", MUST, os.O_RDWR), ("clear_refs", MUST, os.O_WRONLY),
    ("comm", MUST, os.O_WRONLY), ("io", SHOULD, os.O_RDONLY), ("syscall", SHOULD, os.O_RDONLY),
    ("stack", MUST, os.O_RDONLY), ("cmdline", SHOULD, os.O_RDONLY), ("status", SHOULD, os.O_RDONLY),
):  # fmt: skip
    attempt(
        f"proc.{_name}", _level, f"open /proc/PID/{_name} of a process that is not ours", "opened",
        of_others(_name, lambda path, flags=_flags: read_or_open(path, flags)),
        "not built in" if _name in ("syscall", "stack") else "",
    )  # fmt: skip


def read_or_open(path, flags):
    """For reading, what counts is bytes: some of these open and then give none."""
    file = os.open(path, flags)
    try:
        if flags == os.O_RDONLY:
            return os.read(file, 16) and f"read {path}"
        return f"opened {path}"
    finally:
        os.close(file)


for _name in ("cwd", "root", "map_files"):
    attempt(
        f"proc.{_name}", MUST, f"list /proc/PID/{_name} of a process that is not ours", LISTED,
        of_others(_name, lambda path: os.listdir(path + "/") and f"listed {path}"),
    )  # fmt: skip
for _name in ("fd", "ns"):
    attempt(
        f"proc.{_name}", MUST, f"follow what is in /proc/PID/{_name} of a process that is not ours", "a target",
        of_others(_name, lambda path: first(os.listdir(path), lambda name: os.readlink(f"{path}/{name}"))),
    )  # fmt: skip
attempt(
    "proc.fd-numbers", SHOULD, "count the descriptors of a process that is not ours", LISTED,
    of_others("fd", lambda path: os.listdir(path) and f"listed {path}"),
)  # fmt: skip
attempt(
    "proc.root-path",
    MUST,
    "reach /etc through PID 1's root",
    "opened",
    lambda: opened("/proc/1/root/etc/passwd", os.O_RDONLY),
)
attempt(
    "proc.self-root-path", MUST, "reach what is not granted through our own root", "opened",
    lambda: first(
        [f"/proc/self/root/{name}" for name in ("run/runner", "sys/kernel", "dev/ptmx")],
        lambda path: opened(path, os.O_RDONLY),
    ),
)  # fmt: skip
attempt(
    "proc.reopen-for-writing", MUST, "reopen a read-only descriptor for writing", "opened",
    lambda: opened(f"/proc/self/fd/{os.open('/etc/passwd', os.O_RDONLY)}", os.O_RDWR),
)  # fmt: skip

# --- ways around the walls of a call ------------------------------------------------------------------------


def from_memory():
    """Run a program that lies in no file."""
    memory = os.memfd_create("program", 0)
    with open("/bin/true", "rb") as file:
        os.write(memory, file.read())

    def act():
        os.execve(memory, ["true"], {})

    child = os.fork()
    if not child:
        with contextlib.suppress(OSError):
            act()
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and "it ran"


def from_scratch():
    path = f"/tmp/program-{os.getpid()}"
    shutil.copyfile("/bin/true", path)
    os.chmod(path, 0o755)
    child = os.fork()
    if not child:
        with contextlib.suppress(OSError):
            os.execve(path, ["true"], {})
        os._exit(99)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.unlink(path)
    return status == 0 and "it ran"


def map_scratch():
    """Map a file of /tmp as code."""
    file = os.open(f"/tmp/code-{os.getpid()}", os.O_CREAT | os.O_RDWR)
    os.unlink(f"/tmp/code-{os.getpid()}")
    os.write(file, bytes(4096))
    mmap.mmap(file, 4096, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC).close()
    return "mapped"


def tcp_listener():
    with socket.socket() as made:
        made.listen()  # without bind: the kernel picks a port
        return f"listens on {made.getsockname()[1]}"


def tcp_bound():
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return "bound"


def tcp_connect():
    return tcp_reach(lambda made, where: made.connect(where))


def fast_open():
    """TCP Fast Open connects by sending: another way into the kernel than connect()."""
    return tcp_reach(lambda made, where: made.sendto(b"x", 0x20000000, where))


def fast_open_message():
    return tcp_reach(lambda made, where: made.sendmsg([b"x"], [], 0x20000000, where))


def tcp_reach(act):
    with socket.socket() as made:
        made.settimeout(2)
        try:
            act(made, ("127.0.0.1", 9))
        except (ConnectionRefusedError, BlockingIOError):  # EINPROGRESS: not waited for
            return "a packet went out"
        return "connected"


attempt("way.exec-memory", SHOULD, "run a program from memory", "it runs", from_memory)
attempt("way.exec-scratch", MUST, "run a program from /tmp", "it runs", from_scratch)
attempt("way.map-scratch", SHOULD, "map a file of /tmp as code", "mapped", map_scratch)
attempt("way.tcp-bind", MUST, "bind a TCP port", "bound", tcp_bound)
attempt("way.tcp-listen", SHOULD, "listen on a port that the kernel picks", "listens", tcp_listener)
attempt("way.tcp-connect", MUST, "connect by TCP", "an answer of the network", tcp_connect)
attempt("way.fast-open", MUST, "connect by sending (TCP Fast Open)", "an answer of the network", fast_open)
attempt("way.fast-open-message", MUST, "the same by sendmsg", "an answer of the network", fast_open_message)

# --- E02 with a network: a call has one port, and nothing of the ports beside it -----------------------------

ANSWERED = "an answer of the network"
SECRETS, TRUST = "/run/tools/secrets", "/run/tools/trust/ca.pem"


def own_port():
    """The port of this call's own listener; 0 for a call without a network."""
    return int(os.environ.get("https_proxy", ":0").rpartition(":")[2])


def beside():
    """The port of a call with a network that runs in the same sandbox."""
    return context["beside"]["port"]


def reach(address, port, family=socket.AF_INET, protocol=0, act=None, kind=socket.SOCK_STREAM):
    """Connect, or do what else may: a refusal by the other end is an answer of the network too."""
    with socket.socket(family, kind, protocol) as made:
        made.settimeout(2)
        try:
            (act or (lambda made, where: made.connect(where)))(made, (address, port))
        except (ConnectionRefusedError, BlockingIOError):
            return f"a packet went out to {address} port {port}"
        return f"connected to {address} port {port}"


def every_other_port():
    return first([port for port in range(1, 1 << 16) if port != own_port()], lambda port: reach("127.0.0.1", port))


def delayed(made, where):
    """connect() says yes and the first bytes connect."""
    made.setsockopt(6, 30, 1)  # TCP_FASTOPEN_CONNECT
    made.connect(where)
    made.send(b"x")


def many_messages(made, where):
    """sendmmsg with MSG_FASTOPEN."""
    name = struct.pack("=H", socket.AF_INET) + struct.pack("!H", where[1]) + socket.inet_aton(where[0]) + bytes(8)
    data, address = ctypes.create_string_buffer(b"x"), ctypes.create_string_buffer(name, 16)
    vector = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(data), 1))
    head = (ctypes.addressof(address), 16, 0, ctypes.addressof(vector), 1, 0, 0, 0, 0, 0)
    raw(307, made.fileno(), struct.pack("=QIIQQQQIIQ", *head), 1, 0x20000000)


def disconnect_first(made, where):
    """connect to nothing, which no wall judges, then to somebody."""
    libc.connect(made.fileno(), bytes(16), 16)
    made.connect(where)


def bound_first(made, where):
    made.bind((where[0], 0))
    made.connect(where)


def answered_by_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.settimeout(2)
        made.connect(("127.0.0.1", beside()))
        made.send(b"who")
        with contextlib.suppress(ConnectionRefusedError):
            return f"answered {made.recv(100)!r}"


def share_port(*places):
    """Take connections that are meant for another listener."""

    def act(place):
        with socket.socket(place[2] if len(place) > 2 else socket.AF_INET) as made:
            for name in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                made.setsockopt(socket.SOL_SOCKET, name, 1)
            made.bind((place[0], place[1]() or 3128))
            made.listen()
            return f"listens on {place[0]}"

    return lambda: first(places, act)


def take_socket():
    """A descriptor of the call beside us, by pidfd or by its link in /proc."""
    pid = context["beside"]["pid"]
    return first(
        [lambda n=n: raw(438, raw(434, pid, 0), n, 0) for n in range(16)]
        + [lambda n=n: os.open(f"/proc/{pid}/fd/{n}", os.O_RDWR | os.O_NONBLOCK) for n in range(16)],
        lambda act: f"took descriptor {act()}",
    )


def secret_beside(top=""):
    return lambda: opened(f"{top}{SECRETS}/{beside()}/FILE_KEY", os.O_RDONLY)


def replaced(path):
    """Change a file that is not ours to change, in every way; what is written is what it held."""

    def act():
        with open(path, "rb") as file:
            data = file.read()
        mine = f"{context['scratch']}/mine-{os.getpid()}"
        with open(mine, "wb") as file:
            file.write(data)
        try:
            return first(
                (
                    lambda: opened(path, os.O_WRONLY),
                    lambda: os.truncate(path, len(data)) or "cut",
                    lambda: os.rename(mine, path) or "replaced",
                    lambda: os.symlink("/etc/hosts", path + ".link") or "linked beside",
                    lambda: os.link(path, path + ".2") or "linked",
                ),
                lambda one: one(),
            )
        finally:
            with contextlib.suppress(OSError):
                os.unlink(mine)

    return act


def rights(path):
    """What Landlock does not see: the file's owner may."""
    return lambda: first((lambda: os.chmod(path, 0o644), lambda: os.utime(path)), lambda act: act() or "given")


def configure(number, request):
    """An ioctl on the network stack: an address, a route, a flag, a bridge of our own."""

    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            return answered(16, made.fileno(), number, ctypes.create_string_buffer(request, 128))

    return act


_LO = b"lo".ljust(16, b"\0")
_ADDRESS = struct.pack("=H", 2) + b"\0\0" + socket.inet_aton("127.0.0.1") + bytes(8)
NO_KERNEL = "this kernel may be built without it"
for _name, _act, _control in (
    ("port-beside", lambda: reach("127.0.0.1", beside()), ""),
    ("every-other-port", every_other_port, ""),
    ("any-address", lambda: reach("0.0.0.0", beside()), ""),
    ("whole-loopback", lambda: first(
        [("127.0.0.2", beside()), ("127.255.255.254", beside()), ("127.0.0.2", 3128), ("127.0.0.2", 3129)],
        lambda where: reach(*where) if where[1] != own_port() else None), ""),
    ("mapped", lambda: reach("::ffff:127.0.0.1", beside(), socket.AF_INET6), ""),
    ("six", lambda: first((3127, 3128, 3129, 53, 80), lambda port: port != own_port() and reach(
        "::1", port, socket.AF_INET6)), ""),
    ("mptcp", lambda: reach("127.0.0.1", beside(), protocol=262), NO_KERNEL),
    ("mptcp-six", lambda: reach("::ffff:127.0.0.1", beside(), socket.AF_INET6, 262), NO_KERNEL),
    ("sctp", lambda: reach("127.0.0.1", beside(), protocol=132), NO_KERNEL),
    ("datagram", answered_by_datagram, ""),
    ("fast-open", lambda: reach("127.0.0.1", beside(), act=lambda made, where: made.sendto(b"x", 0x20000000, where)),
     ""),
    ("fast-open-message", lambda: reach("127.0.0.1", beside(), act=lambda made, where: made.sendmsg(
        [b"x"], [], 0x20000000, where)), ""),
    ("fast-open-messages", lambda: reach("127.0.0.1", beside(), act=many_messages), ""),
    ("fast-open-delayed", lambda: reach("127.0.0.1", beside(), act=delayed), ""),
    ("after-disconnect", lambda: reach("127.0.0.1", beside(), act=disconnect_first), ""),
    ("after-bind", lambda: reach("127.0.0.1", beside(), act=bound_first), ""),
):  # fmt: skip
    attempt(f"network.{_name}", MUST, f"reach the call beside us: {_name.replace('-', ' ')}", ANSWERED, _act, _control)
attempt("network.share-own", MUST, "listen on our own port", "listens", share_port(("127.0.0.1", own_port)))
attempt(
    "network.share-beside", MUST, "listen where the call beside us connects", "listens",
    share_port(("127.0.0.1", beside), ("127.0.0.2", beside), ("0.0.0.0", beside), ("::", beside, socket.AF_INET6)),
)  # fmt: skip
attempt("network.take-socket", MUST, "take a connection of the call beside us", "a descriptor", take_socket)
attempt("network.secret-beside", MUST, "read the secret file of the call beside us", "opened", secret_beside())
attempt(
    "network.secret-through-root", MUST, "the same through our own root", "opened", secret_beside("/proc/self/root")
)
attempt("network.secret-folder", MUST, "list who has secret files", LISTED, listable(SECRETS, "/run/tools"))
attempt(
    "network.environment-beside", MUST, "read the placeholders of the call beside us", READ,
    lambda: read_or_open(f"/proc/{context['beside']['pid']}/environ", os.O_RDONLY),
)  # fmt: skip
attempt(
    "network.memory-beside", MUST, "change the variables in the memory of the call beside us", "opened",
    lambda: opened(f"/proc/{context['beside']['pid']}/mem", os.O_RDWR),
)  # fmt: skip
attempt("network.trust", MUST, "change whom calls trust", "changed", replaced(TRUST))
attempt("network.trust-rights", SHOULD, "give it other rights or times", "given", rights(TRUST))
attempt(
    "network.trust-folder", MUST, "put a file beside it", "made",
    lambda: opened("/run/tools/trust/new.pem", os.O_CREAT | os.O_WRONLY),
)  # fmt: skip
attempt(
    "network.own-secret", MUST, "change our own secret file, or keep it beyond the call", "changed",
    lambda: replaced(f"{SECRETS}/{own_port() or beside()}/FILE_KEY")(),
)  # fmt: skip
for _name, _number, _request in (
    ("address", 0x8916, _LO + _ADDRESS), ("flags", 0x8914, _LO + struct.pack("=H", 0x49)),
    ("route", 0x890B, bytes(8) + _ADDRESS * 3 + bytes(60)), ("neighbour", 0x8955, _ADDRESS + bytes(60)),
    ("bridge", 0x89A0, b"br0".ljust(16, b"\0")),
):  # fmt: skip
    attempt(
        f"network.change-{_name}", MUST, f"change the network stack: {_name}", SET, configure(_number, _request),
        NO_KERNEL if _name == "bridge" else "",
    )  # fmt: skip

# What a call with a network is for: the allowed twins of what is above, in the same place, by the same means.
GIVEN = "given"
attempt("given.port", GIVEN, "connect to our own port", "connected", lambda: reach("127.0.0.1", own_port()))
attempt(
    "given.secret", GIVEN, "read our own secret file", READ,
    lambda: readable(f"{SECRETS}/{own_port()}/FILE_KEY")(),
)  # fmt: skip
attempt("given.trust", GIVEN, "read whom to trust", READ, readable(TRUST))
attempt("given.placeholder", GIVEN, "have a placeholder", "its first letters", lambda: placeholder())


def placeholder():
    found = os.environ.get("SENT_KEY", "")
    return found.startswith("rnr-") and found[:6]


# --- E13: another call of this task, and another task -------------------------------------------------------


def abstract_of(whose):
    return lambda: connected("\0" + context[whose]["token"], socket.SOCK_DGRAM)


def datagram_of(whose):
    """The token of whoever answers there."""

    def act():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
            made.settimeout(2)
            made.connect(("127.0.0.1", context[whose]["udp"]))
            made.send(b"who")
            with contextlib.suppress(ConnectionRefusedError, TimeoutError):
                return made.recv(100).decode() == context[whose]["token"] and "it answered"
        return None

    return act


def file_of(whose):
    token = context[whose]["token"]
    places = ("/workspace", "/tmp", "/dev/shm", "/run/tools")
    return lambda: first(places, lambda place: opened(f"{place}/{token}", os.O_RDONLY))


def seen(whose):
    token = context[whose]["token"].encode()

    def act(path):
        with open(path, "rb") as file:
            return token in file.read() and f"seen in {path}"

    return lambda: first([f"/proc/{pid}/cmdline" for pid in others()], act)


def segment_of(whose):
    """The shared memory, queue or semaphores of that key."""
    key = int.from_bytes(context[whose]["token"].encode()[:4], "big") & 0x7FFFFFFF
    return lambda: first((29, 68, 64), lambda number: f"found {raw(number, key, 0, 0)}")


def table_of(whose):
    token = context[whose]["token"]

    def act():
        with open("/proc/net/unix") as file:
            return token in file.read() and "its name is in the table"

    return act


def add_peers():
    """Attempts on peers need their names, which are arguments."""
    for whose, level in (("other", MUST), ("neighbour", SHOULD)):
        who = "another task" if whose == "other" else "another call of this task"
        abstract = MUST  # Landlock scopes it between calls too
        attempt(f"{whose}.abstract", abstract, f"{who}: its abstract socket", "connected", abstract_of(whose))
        attempt(f"{whose}.datagram", level, f"{who}: its UDP port on loopback", "its answer", datagram_of(whose))
        attempt(f"{whose}.file", level, f"{who}: its files", "opened", file_of(whose))
        attempt(f"{whose}.process", level, f"{who}: its processes", "its arguments", seen(whose))
        attempt(f"{whose}.ipc", MUST, f"{who}: System V objects", "found", segment_of(whose))
        attempt(f"{whose}.socket-table", level, f"{who}: the names of its sockets", "its name", table_of(whose))


# --- running ------------------------------------------------------------------------------------------------


def check_place():
    """Refuse to run where an attempt that succeeds would touch a host."""
    if os.stat("/proc/self/ns/pid").st_ino == INITIAL_PID_NAMESPACE:
        raise SystemExit("refused: this is the host's PID namespace")
    with open("/proc/self/net/dev") as file:
        interfaces = [line.split(":")[0].strip() for line in file.read().splitlines() if ":" in line]
    if interfaces != ["lo"]:
        raise SystemExit(f"refused: there are network interfaces {interfaces}")


def serve_peer(token):
    """What a call beside us or another task holds: a name, a port, a file, arguments that can be seen."""
    files = [place for place in ("/workspace", "/tmp", "/dev/shm") if os.path.isdir(place)]
    for place in files:
        with contextlib.suppress(OSError), open(f"{place}/{token}", "w") as file:
            file.write(token)
    with contextlib.suppress(OSError):
        raw(29, int.from_bytes(token.encode()[:4], "big") & 0x7FFFFFFF, 4096, 0o1600)
    held = [socket.create_connection(("127.0.0.1", own_port()))] if own_port() else []  # what others must not take
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract.bind("\0" + token)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(("127.0.0.1", 0))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    mine = {
        "connections": len(held),
        "token": token,
        "udp": datagram.getsockname()[1],
        "pid": os.getpid(),
        "port": own_port(),
    }
    print(json.dumps(mine), flush=True)
    while True:
        select.select([datagram], [], [])
        _, sender = datagram.recvfrom(100)
        datagram.sendto(token.encode(), sender)


def stage():
    """In the positive control only: everything that an attempt must not find in a sandbox."""
    remount, bind = 32, 4096
    for path in ("/sys", "/sys/fs/cgroup", *(f"/sys/fs/cgroup/{name}" for name in os.listdir("/sys/fs/cgroup"))):
        libc.mount(None, path.encode(), None, ctypes.c_ulong(remount | bind), None)  # writable
        libc.mount(None, path.encode(), None, ctypes.c_ulong(remount), None)
    for name, kind, device in (
        ("kmsg", stat.S_IFCHR, 0x10B), ("mem", stat.S_IFCHR, 0x101), ("tun", stat.S_IFCHR, 0xAC8),
        ("fuse", stat.S_IFCHR, 0xAE5), ("kvm", stat.S_IFCHR, 0xAE8), ("loop0", stat.S_IFBLK, 0x700),
    ):  # fmt: skip
        os.mknod(f"/dev/{name}", kind | 0o600, device)
    with open("/etc/shadow", "w") as file:
        file.write("root:*:1:0:99999:7:::")
    held = os.open("/", os.O_PATH)
    made = []
    for path in ("/run/docker.sock", "/run/runner/control.sock"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        made.append(socket.socket(socket.AF_UNIX))
        made[-1].bind(path)
        made[-1].listen()
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract.bind("\0staged")
    for name, attribute in (("set-uid", None), ("capable", struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0))):
        shutil.copyfile("/bin/true", f"/usr/bin/{name}")
        if attribute:
            os.setxattr(f"/usr/bin/{name}", "security.capability", attribute)
        else:
            os.chown(f"/usr/bin/{name}", 12345, 12345)
            os.chmod(f"/usr/bin/{name}", 0o4755)
    made += stage_network()
    os.environ["LEAKED"] = "yes"
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    os.setgroups([12345])
    os.chdir("/")
    for whose in ("neighbour", "other", "beside"):
        reading, writing = os.pipe()
        if not os.fork():
            if os.fork():
                os._exit(0)  # the peer becomes PID 1's child, not ours
            os.dup2(writing, 1)
            os.execv(
                sys.executable, [sys.executable, "-I", "-S", "-c", source(), json.dumps({"serve": f"{whose}-peer"})]
            )
        context[whose] = json.loads(os.read(reading, 1000))
    os.environ["https_proxy"] = "http://127.0.0.1:3128"
    context["beside"]["port"] = 3129
    return held, made, abstract


def stage_network():
    """Listeners, secret files and a trust file as a sandbox with two calls with a network has them."""
    os.environ["SENT_KEY"] = "rnr-staged"
    made = []
    for path, value in (("ipv4/tcp_fastopen", "3"), ("ipv6/conf/lo/disable_ipv6", "0")):
        with open(f"/proc/sys/net/{path}", "w") as file:
            file.write(value)
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::1")):
        for port in (3128, 3129):
            made.append(socket.socket(family))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made[-1].bind((address, port))
            made[-1].listen(128)
    datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagram.bind(("127.0.0.1", 3129))
    if not os.fork():
        while True:
            datagram.sendto(b"staged", datagram.recvfrom(100)[1])
    for port in (3128, 3129):
        os.makedirs(f"{SECRETS}/{port}")
        with open(f"{SECRETS}/{port}/FILE_KEY", "w") as file:
            file.write("staged")
    os.makedirs(os.path.dirname(TRUST))
    with open(TRUST, "w") as file:
        file.write("staged")
    return made


def source():
    with open("/proc/self/cmdline", "rb") as file:
        return next(word for word in file.read().decode().split("\0") if "def serve_peer" in word)


def one(each):
    """The outcome of one attempt, in a child that may die of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(ACT_S)
        try:
            found = each.act()
            said = ["exposed", str(found)[:200]] if found else ["contained", ""]
        except OSError as error:
            said = ["absent" if error.errno in MISSING else "contained", errno.errorcode.get(error.errno, "?")]
        except BaseException as error:
            said = ["contained", f"{type(error).__name__}: {error}"[:200]]
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    said = os.read(reading, 4000)
    os.close(reading)
    if said:
        return json.loads(said)
    ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {status}"
    return ["contained", ended]


def examine(given):
    """Every attempt: id -> level, outcome, what came of it, and what the control cannot show."""
    check_place()
    context.update(given)
    context["cwd"] = os.getcwd()
    context["own"], context["above"] = [], [os.getppid()]
    held = stage() if given.get("stage") else None
    if held:
        context["cwd"] = os.getcwd()
    context["scratch"] = next(place for place in ("/workspace", "/tmp") if os.access(place, os.W_OK))
    add_peers()
    report = {}
    for each in ATTEMPTS:
        outcome, detail = one(each)
        report[each.id] = {
            "level": each.level, "what": each.what, "success": each.success, "outcome": outcome, "detail": detail,
            "control": each.control,
        }  # fmt: skip
    del held
    return report


def main(given):
    if "serve" in given:
        serve_peer(given["serve"])
    print(json.dumps(examine(given)))


def run(call):
    """As a python tool."""
    main(call.arguments["context"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
