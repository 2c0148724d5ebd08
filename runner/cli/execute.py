"""`runner exec`: start an agent with a token of its own. Nothing secret in argv, in the environment or on disk.

The issuer's key is read here and by `token mint` only. The agent inherits one descriptor beside its standard
ones: sealed memory with its token and a fresh key.
"""

from __future__ import annotations

import getpass
import grp
import os
import pwd
import re
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from runner.cli import credentials, keys
from runner.client.credentials import descriptor
from runner.config import Config, load_config, milliseconds
from runner.errors import refuse
from runner.token import credentials as handed
from runner.token.keys import SigningKey, generate
from runner.token.strict import parse_json
from runner.wire import admin

DEFAULT_CONFIG = Path("/etc/toolrunner/runner.toml")

EPILOG = (
    "Example: runner exec --agent reader --task t-42 --user alice --allow fs_list "
    """--allow 'fs_read={"path":{"constraint_type":"path_containment","root":"/workspace/src"}}' """
    "-- python agent.py\n\n"
    "`egress` is granted like a tool: what calls may send out, within task profile and tool. Its arguments are host, "
    "port, protocol, and method and path where requests can be read: "
    """--allow 'egress={"host":{"constraint_type":"exact","value":"api.example.com"},"""
    """"*":{"constraint_type":"wildcard"}}'\n\n"""
    "Exit status: the command's own; 2 a wrong option, 3 refused, 4 no daemon, 5 a wrong file or key."
)


def execute(
    command: Annotated[list[str], typer.Argument(help="The agent's command, after --.", metavar="COMMAND")],
    agent: Annotated[str, typer.Option(help="The agent's name.")],
    task: Annotated[str, typer.Option(help="The task; its workspace lives as long as it does.")],
    allow: Annotated[
        list[str], typer.Option(help="TOOL, or TOOL={constraint map as JSON}. Repeatable.", metavar="TOOL[=JSON]")
    ],
    owner: Annotated[str, typer.Option(help="On whose behalf; you by default.")] = "",
    session: Annotated[str, typer.Option(help="The session; a fresh id by default.")] = "",
    profile: Annotated[str, typer.Option(help="The task profile.")] = "default",
    ttl: Annotated[str, typer.Option(help="How long the token is good for: 30s, 15m, 1h.")] = "1h",
    depth: Annotated[int, typer.Option(help="How many times the agent may derive from it, in a row.", min=0)] = 0,
    user: Annotated[str, typer.Option(help="Run the agent as this user. Required when you are root.")] = "",
    key: Annotated[
        Path | None, typer.Option(help="The issuer's private key; beside its public key by default.")
    ] = None,
    config: Annotated[Path, typer.Option(help="The daemon's configuration.", envvar="RUNNER_CONFIG")] = DEFAULT_CONFIG,
) -> None:
    """Start an agent with a token for these tools, good for this task, until its time is up."""
    settings, _ = load_config(config)
    account = _account(user, settings)
    program = find_program(command[0])
    groups = _groups(account, settings.users.agents_group) if os.geteuid() == 0 else []
    wish = credentials.Wish(
        agent=agent,
        owner=owner or _caller(),
        task=task,
        session=session or credentials.fresh_id(),
        profile=profile,
        tools=once(map(parse_allow, allow)),
        ttl_s=seconds(ttl),
        depth=depth,
    )
    issuer_key, issuer = keys.load_issuer(key or _issuer_key(settings, config))
    holder = SigningKey(generate())
    token, message = credentials.mint(wish, issuer_key, issuer, holder.public)
    _announce(settings, message)
    bundle = handed.credentials((token,), holder, str(Path(settings.run) / "agent.sock"))
    become(account, groups, descriptor(bundle), program, command)


def parse_allow(text: str, option: str = "--allow") -> tuple[str, dict[str, Any]]:
    """One TOOL=MAP, or TOOL:MAP: a tool, and the constraint map on its arguments ({} allows any). Raises
    `typer.BadParameter`."""
    split = re.fullmatch(r"([^:=]*)[:=](.*)", text, re.DOTALL)
    if split is None:
        return text, {}
    name, constraints = split.groups()
    try:
        parsed = parse_json(constraints.encode(), 80)
    except ValueError as error:
        raise typer.BadParameter(f"{name}: the constraint map is not JSON: {error}", param_hint=option) from None
    if not isinstance(parsed, dict):
        raise typer.BadParameter(f"{name}: the constraint map is not a JSON object", param_hint=option)
    return name, parsed


def once(named: Iterable[tuple[str, dict[str, Any]]], option: str = "--allow") -> dict[str, dict[str, Any]]:
    """Tools by name. Raises `typer.BadParameter` for one named twice: whichever map won, the other was meant too."""
    found: dict[str, dict[str, Any]] = {}
    for name, constraints in named:
        if name in found:
            raise typer.BadParameter(f"{name} is named twice; put its constraints into one map", param_hint=option)
        found[name] = constraints
    return found


def seconds(ttl: str) -> int:
    """How long a token is good for, at least a second. Raises `typer.BadParameter`."""
    try:
        wished = milliseconds(ttl)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--ttl") from None
    if not wished:
        raise typer.BadParameter(f"`{ttl}` is no time to live", param_hint="--ttl")
    return max(1, wished // 1000)


def _caller() -> str:
    return os.environ.get("SUDO_USER") or getpass.getuser()


def _account(user: str, settings: Config) -> pwd.struct_passwd:
    """Whom the agent runs as. Raises `typer.BadParameter`, and `RunnerError` (config) on one the daemon refuses."""
    if not user and os.geteuid() == 0:
        raise typer.BadParameter("you are root, and an agent never is: name the user it runs as", param_hint="--user")
    try:
        account = pwd.getpwnam(user) if user else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise typer.BadParameter(f"there is no user `{user}` here", param_hint="--user") from None
    if account.pw_uid == 0:
        raise typer.BadParameter("root may not be an agent's user", param_hint="--user")
    if os.geteuid() not in (0, account.pw_uid):
        raise typer.BadParameter("only root can start an agent as another user", param_hint="--user")
    if not {account.pw_name, account.pw_uid} & set(settings.peers.agents):
        raise refuse(
            "config",
            f"the daemon would not let `{account.pw_name}` connect",
            field="peers.agents",
            next_step=f"add `{account.pw_name}` to agents in [peers] and reload, or choose another --user",
        )
    return account


def find_program(name: str) -> str:
    """The file to run, found before anything is minted. Raises `typer.BadParameter`."""
    found = shutil.which(name)
    if found is None:
        raise typer.BadParameter(f"there is no command `{name}`", param_hint="COMMAND")
    return found


def _issuer_key(settings: Config, config: Path) -> Path:
    """`issuer.key` beside the `issuer.pub` that the configuration trusts."""
    if (credential := keys.usual_key()).is_absolute():
        return credential
    for issuer in settings.issuers:
        beside = Path(issuer.public_key).with_suffix(".key")
        if beside.exists():
            return beside
    raise refuse(
        "key",
        "no private key lies beside an issuer's public key that the daemon trusts",
        field=f"{config}: issuers",
        next_step="name one with --key, or make one with `runner keys init`",
    )


def _announce(settings: Config, message: admin.Announce) -> None:
    credentials.announce(Path(settings.run) / "admin.sock", message)


def become(
    account: pwd.struct_passwd, groups: list[int], handed_over: int, program: str, command: list[str]
) -> NoReturn:
    """Turn into the agent: its user and groups, its one extra descriptor, its command. Raises `RunnerError` (host)."""
    environment = dict(os.environ)
    if os.geteuid() == 0:
        environment |= {"HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
        os.setgroups(groups)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    run(handed_over, program, command, environment)


def run(handed_over: int, program: str, command: list[str], environment: dict[str, str]) -> NoReturn:
    """Turn into `command` with these credentials' descriptor, and no other. Raises `RunnerError` (host)."""
    _close_others(handed_over)
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and exec would hand that on
        signal.signal(ignored, signal.SIG_DFL)
    environment[handed.DESCRIPTOR_VARIABLE] = str(handed_over)
    try:
        os.execve(program, command, environment)  # noqa: S606 - the caller's own command is what this is for
    except OSError as error:
        name = pwd.getpwuid(os.geteuid()).pw_name
        raise refuse(
            "host",
            f"cannot run {program} as {name}: {error.strerror}",
            next_step="see that this user may read and execute it",
        ) from None


def _groups(account: pwd.struct_passwd, agents_group: str) -> list[int]:
    """The user's own groups, and the one that may open agent.sock."""
    groups = set(os.getgrouplist(account.pw_name, account.pw_gid))
    try:
        groups.add(grp.getgrnam(agents_group).gr_gid)
    except KeyError:
        raise refuse(
            "host", f"there is no group `{agents_group}`", field="users.agents_group", next_step="run `scripts/setup`"
        ) from None
    return sorted(groups)


def _close_others(kept: int) -> None:
    """Close every descriptor but the standard ones and `kept`: none of ours is the agent's."""
    highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
    os.closerange(3, kept)
    os.closerange(kept + 1, highest + 1)
