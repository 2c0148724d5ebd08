"""From a grant to the plan of its call: the tool's manifest inside the tool profile inside the task profile.

Pure: everything is an argument. A tool profile can only narrow (`runner.catalog` refuses one that does not), so
each number here is the smaller of the two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from runner.errors import refuse
from runner.model import CallPlan, Ceilings, Grant, Jail, Manifest, TaskProfile, ToolProfile
from runner.token.constraints import confined_to

WORKSPACE = "/workspace"
TOOLS = "/run/tools"
SECRETS = f"{TOOLS}/secrets"  # a folder per port, so that a launcher that is built ahead can serve any call with it
TRUST = f"{TOOLS}/trust/ca.pem"  # certificate authorities: egress's own and the sandbox's
FIRST_PORT = 3128  # of the listeners in a sandbox: one per call at a time
# What every tool may read and run: the image. /proc and /dev are Docker's masked ones.
SYSTEM = ("/bin", "/etc", "/lib", "/lib64", "/usr")
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_ENVIRONMENT = {
    "HOME": WORKSPACE,
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PWD": WORKSPACE,
    "TMPDIR": "/tmp",  # noqa: S108 - the sandbox's own tmpfs
}
# What common clients read to find a proxy, and whom to trust besides the system's own file, which leads to TRUST too.
_PROXY = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_AUTHORITIES = (
    "SSL_CERT_FILE",  # OpenSSL, Python, Go, Ruby, httpx
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "DENO_CERT",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
    "PERL_LWP_SSL_CA_FILE",
)


def uses_network(manifest: Manifest) -> bool:
    """Whether its calls need a listener, or a folder of secrets, of their own: a port."""
    return bool(manifest.egress or manifest.secrets)


def plan(
    grant: Grant, *, sandbox: str, manifest: Manifest, task: TaskProfile, tool: ToolProfile, port: int = 0
) -> CallPlan:
    """The plan of an allowed call; `port` is its own in the sandbox, where the tool `uses_network`.

    Raises `RunnerError` (arguments) when argv cannot be built from the arguments."""
    arguments = grant.authenticated.arguments
    ceilings = task.ceilings
    roots = _roots(manifest, grant.authenticated.constraints)
    deadline = grant.authenticated.call.deadline_ms
    wall = _least(ceilings.wall_ms, tool.wall_ms, deadline)
    return CallPlan(
        call=grant.call,
        sandbox=sandbox,
        tool=manifest.id,
        kind=manifest.kind,
        isolation=tool.isolation,
        jail=_jail(
            manifest.id if manifest.code_digest else "",
            # An argv tool cannot be held by openat2: the folders its token grants become its Landlock rules.
            tuple(sorted(set(roots.values()))) if manifest.kind == "argv" and roots else (WORKSPACE,),
            ceilings,
            tool,
            *_network(manifest, port),
        ),
        argv=_argv(manifest, arguments) if manifest.kind == "argv" else (),
        arguments=arguments if manifest.kind == "python" else {},
        roots=roots,
        environment=_environment(manifest, tool, port),
        secrets_folder=_secrets(manifest, port),
        code_digest=manifest.code_digest,
        stdin=manifest.stdin and grant.authenticated.call.stdin,
        wall_ms=wall,
        cpu_s=_least(ceilings.cpu_s, tool.cpu_s),
        output=_least(ceilings.output, tool.output),
        output_rate=ceilings.output_rate,
        result=ceilings.result,
    )


class Usual(NamedTuple):
    """What a launcher is built for."""

    jail: Jail
    cpu_s: int
    isolation: str


def usual(task: TaskProfile, tools: Iterable[tuple[Manifest, ToolProfile]]) -> Usual | None:
    """What most argv tools of a task need when no token narrows where they write; None where none keeps its launcher:
    a fresh jail is built ahead by its first call, and a python tool's launcher costs an idle sandbox memory."""
    found = Counter(
        Usual(_jail("", (WORKSPACE,), task.ceilings, tool), _least(task.ceilings.cpu_s, tool.cpu_s), tool.isolation)
        for manifest, tool in tools
        if manifest.kind == "argv" and tool.isolation == "launcher"
    )
    return found.most_common(1)[0][0] if found else None


def _least(first: int, *others: int) -> int:
    """The smallest of these; 0 among `others` means not stated."""
    return min([first, *(value for value in others if value > 0)])


@lru_cache(maxsize=256)  # a few per tool; building one costs more than the rest of a plan
def _jail(
    code: str, granted: tuple[str, ...], ceilings: Ceilings, tool: ToolProfile, connect: int = 0, secrets: str = ""
) -> Jail:
    """The walls of a tool whose code, if it has any, lies in the folder `code`; it may connect to one port at most."""
    read = [*SYSTEM, *DEVICES, "/proc"]
    if connect:
        read.append(TRUST.rpartition("/")[0])
    if secrets:
        read.append(secrets)
    write = ["/dev/null"]
    if code:
        read.append(f"{TOOLS}/{code}")
    execute = list(SYSTEM)
    if tool.workspace != "none":
        read += granted
    if tool.workspace == "write":
        write += granted
        execute += granted  # a tool may run what it wrote: the walls hold for that too
    if tool.tmp:
        read.append("/tmp")  # noqa: S108 - the sandbox's own tmpfs
        write.append("/tmp")  # noqa: S108 - the same; it is mounted noexec
        if ceilings.shm:
            read.append("/dev/shm")  # noqa: S108 - the same; POSIX shared memory and semaphores live there
            write.append("/dev/shm")  # noqa: S108 - the same
    return Jail(
        read=tuple(read),
        write=tuple(write),
        execute=tuple(execute),
        seccomp=",".join(tool.seccomp_deny),
        open_files=_least(ceilings.open_files, tool.open_files),
        file_size=_least(ceilings.file_size, tool.file_size),
        connect=connect,
    )


def _network(manifest: Manifest, port: int) -> tuple[int, str]:
    """The port its calls may connect to, and the folder of their secrets."""
    return (port if manifest.egress else 0), _secrets(manifest, port)


def _secrets(manifest: Manifest, port: int) -> str:
    return f"{SECRETS}/{port}" if any(ref.delivery == "file" for ref in manifest.secrets) else ""


def _environment(manifest: Manifest, tool: ToolProfile, port: int) -> dict[str, str]:
    found = _ENVIRONMENT if tool.tmp else {**_ENVIRONMENT, "TMPDIR": WORKSPACE}
    if manifest.egress:
        proxy = dict.fromkeys(_PROXY, f"http://127.0.0.1:{port}")
        found = found | proxy | dict.fromkeys(_AUTHORITIES, TRUST) | {"NODE_USE_ENV_PROXY": "1"}
    files = {ref.variable: f"{SECRETS}/{port}/{ref.variable}" for ref in manifest.secrets if ref.delivery == "file"}
    return found | files


def _roots(manifest: Manifest, constraints: dict[str, Any]) -> dict[str, str]:
    """The folder that the token confines each path argument to: enforced again where the file is opened."""
    found = {name: confined_to(constraints.get(name) or {}) for name in manifest.paths}
    return {name: root for name, root in found.items() if root}


def _argv(manifest: Manifest, arguments: dict[str, Any]) -> tuple[str, ...]:
    built: list[str] = []
    for part in manifest.argv:
        if not (part.startswith("{") and part.endswith("}")):
            built.append(part)
            continue
        name = part[1:-1]
        value = arguments.get(name)
        if isinstance(value, list):
            built.extend(_word(name, item) for item in value)
        elif value is not None:
            built.append(_word(name, value))
    if not built or not built[0]:
        raise refuse("arguments", "there is no program to run", field="argv")
    return tuple(built)


def _word(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise refuse("arguments", "not a string or a number", field=name)
    text = str(value)
    if "\0" in text:
        raise refuse("arguments", "a NUL byte cannot be passed to a program", field=name)
    return text
