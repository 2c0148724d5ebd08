"""`runner init DIR`: a folder to start from: runner.toml with its comments, and the package's own catalogue to edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.catalog import SCHEMA, compile_bundle, read_folders, shared
from runner.cli.tables import print_json
from runner.errors import RunnerError, refuse
from runner.gate.schema import cedar_schema

_FOLDERS = ("profiles", "tools", "policies")
_SKIPPED = ("__pycache__",)

CONFIG = """\
# The daemon's configuration. Unknown keys are refused. Relative paths start at this file's folder.
# Check it: runner doctor --config runner.toml      Start: runner serve --config runner.toml

# Ledger, content store, sessions: what a restart must find. Root only.
# state = "/var/lib/toolrunner"

# The two sockets: agent.sock (group runner-agents) and admin.sock (root, or operators_group in [users]).
# run = "/run/toolrunner"

# The catalogue, copied here to be edited. Leave a line out to use the one that came with the package.
profiles = "profiles"
tools = "tools"
policies = "policies"

# Who may connect, by user name or number, checked before a byte is read. Nobody may by default.
[peers]
agents = []
operators = [0]

# Named operators, once root alone is not enough: each by uid, by key (`runner admin key FILE`), or either, with roles
# out of policy-author, approver, containment, secrets, forensics, auditor. Then nobody else is an operator, and
# [peers] has no operators. Acts in two_person (it stands above every section) need another operator's confirmation.
# An operator who is not root must be in the group that may open admin.sock; `runner doctor` says who is not.
# two_person = ["activate-policy", "release"]
# [users]
# operators_group = "runner-operators"
# [[operators]]
# name = "ann"
# uid = 0
# key = ""
# roles = ["policy-author", "approver"]

# Who may say what an agent may do: `runner keys init` writes such a key pair and prints this section.
# [[issuers]]
# uri = "https://issuer.example"
# public_key = "keys/issuer.jwk"

# What tools may reach is said in profiles and manifests ([[egress]]); `runner egress explain URL --tool ID` says who
# decides. Here is how egress finds names and whom it believes: the host's resolver and authorities, and these.
# [egress]
# nameservers = ["198.51.100.53"]
# hosts = { "db.example" = ["198.51.100.7"] }
# trust = "keys/authorities.pem"

# What the daemon's own processes may reach, by the same rules: nothing by default. Providers of secrets need theirs.
# [[daemon.destinations]]
# name = "vault"
# host = "vault.example"
# ports = [8200]

# Secrets for tools: `runner secret init` makes the key of the broker's own store, `runner secret set NAME` fills it.
# Others' come from programs, HashiCorp Vault or OpenBao, and OAuth 2.0 servers; a manifest names them `vault:orders`.
# [secrets.providers.vault]
# kind = "vault"
# address = "https://vault.example:8200"
# token = "vault-token"
# [secrets.providers.vault.secrets.orders]
# path = "database/creds/orders-rw"
# read_path = "database/creds/orders-ro"
# username = "username"

# Who can open raw output (what tools wrote, before any filter), which a profile's `raw` has kept: public keys of age,
# whose private ones are kept elsewhere, by forensics. `runner escrow init` makes one, and prints what goes here.
# [escrow]
# recipients = []

# Whose signature a bundle of policies must have: runner policy sign.
# [policy]
# require_signature = true
# public_keys = ["keys/policy.pub"]

# Containers: "" takes DOCKER_HOST or the local engine, and the image that scripts/setup built.
[sandboxes]
docker_host = ""
image = ""
maximum = 64
archive = true  # save each image once (docker save), so that what calls ran in can be had again

# Spans: "none", or "file" for OTLP JSON lines in the state folder.
[telemetry]
export = "none"

# Every bound on hostile input has a default with a reason: see runner/config.py.
# [limits]
# connections_per_uid = 64
"""


def init(
    dir: Annotated[Path, typer.Argument(help="Folder to lay out; made if it is not there.")],  # noqa: A002 - its name in --help
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Lay out a folder to start from: runner.toml, profiles, tools, policies. Nothing that exists is overwritten."""
    written = lay_out(dir)
    if json:
        print_json({"folder": str(dir), "written": [str(path) for path in written]})
        return
    print(f"wrote {len(written)} files to {dir}: runner.toml, {', '.join(f'{name}/' for name in _FOLDERS)}")
    print("next:")
    print(f"  1. edit {dir / 'runner.toml'}: who may connect ([peers])")
    print(
        f"  2. runner policy check --policies {dir / 'policies'} --tools {dir / 'tools'} --profiles {dir / 'profiles'}"
    )
    print("  3. runner keys init, and put the issuer it prints into runner.toml")
    print(f"  4. runner secret init --config {dir / 'runner.toml'}, where tools will need credentials")
    print(f"  5. runner doctor --config {dir / 'runner.toml'}, then runner serve --config {dir / 'runner.toml'}")
    print("The daemon runs as runner-gate, runner-recorder, runner-egress and runner-broker: scripts/setup makes these")
    print("users and the group runner-agents, or useradd -r and groupadd -r do.")


def lay_out(folder: Path) -> list[Path]:
    """Write the files. Raises `RunnerError` (config), before anything is written, when one of them exists."""
    content = {folder / "runner.toml": CONFIG.encode()}
    for name in (*_FOLDERS, "Containerfile"):
        source = shared(name)
        if source.is_file():
            content[folder / name] = source.read_bytes()
        for path in sorted(source.rglob("*")) if source.is_dir() else ():
            if path.is_file() and not path.is_symlink() and not set(path.parts) & set(_SKIPPED):
                content[folder / name / path.relative_to(source)] = path.read_bytes()
    tools = compile_bundle(read_folders(*(shared(name) for name in _FOLDERS))).tools
    content[folder / "policies" / SCHEMA] = cedar_schema(tools.values()).encode()
    taken = [path for path in (*content, *(folder / name for name in _FOLDERS)) if path.exists() or path.is_symlink()]
    if taken:
        raise refuse(
            "config",
            "exists already, and nothing is overwritten",
            field=str(taken[0]),
            next_step="choose an empty folder, or remove it",
        )
    try:
        for path, data in content.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
    except OSError as error:
        raise _unwritable(error, folder) from error
    return list(content)


def _unwritable(error: OSError, folder: Path) -> RunnerError:
    return refuse("config", f"cannot write it: {error.strerror}", field=str(error.filename or folder))
