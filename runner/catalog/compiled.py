"""A bundle's bytes compiled into one whole catalogue: gate's and engine's part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from runner.catalog.egress import compile_rules
from runner.catalog.files import SIGNATURE, VERSION, Contents, all_files
from runner.catalog.filters import compile_filter_rules, is_filter
from runner.catalog.injection import compile_injection_rules
from runner.catalog.manifest import compile_tools
from runner.catalog.place import Place
from runner.catalog.profile import compile_filters, compile_profiles
from runner.config import Config, decode_toml, parse_config
from runner.errors import refuse
from runner.model import EgressRule, FilterRule, InjectionRule, Manifest, TaskProfile, ToolProfile
from runner.wire.parent import Bundle


class Catalog(msgspec.Struct, frozen=True, kw_only=True):
    """One whole, checked catalogue. `contents` maps every digest that an entry may name to the bytes it is of."""

    digest: str
    config: Config
    tools: dict[str, Manifest]
    task_profiles: dict[str, TaskProfile]
    tool_profiles: dict[str, ToolProfile]
    seccomp: dict[str, bytes]  # OCI/Docker JSON by name, without ".json"
    policies: dict[str, bytes]  # "base.cedar"; every file of the bundle but its signature
    policy_version: str = ""  # as bundle.toml names it
    filters: tuple[FilterRule, ...] = ()  # what output is searched for, files by name, rules in their order
    injections: tuple[InjectionRule, ...] = ()  # what text looks like that speaks to a model
    signature: bytes | None = None  # of the policies; whoever holds the trusted keys checks it
    destinations: tuple[EgressRule, ...] = ()  # what the daemon's own processes may dial
    contents: dict[str, bytes]


def compile_bundle(bundle: Bundle) -> Catalog:
    """All of `bundle`. Raises `RunnerError` (config, profile, manifest, policy, not_supported) for the first thing
    wrong."""
    files = all_files(bundle.config, profiles=bundle.profiles, tools=bundle.tools, policies=bundle.policies)
    contents = Contents()
    if contents.archive(files) != bundle.digest:
        raise refuse("internal", "the catalogue's bytes do not have the digest they came with")
    contents.plain(bundle.config)
    seccomp = compile_filters(bundle.profiles, contents)
    task_profiles, tool_profiles = compile_profiles(bundle.profiles, contents)
    tools = compile_tools(bundle.tools, tool_profiles, contents)
    _check_together(task_profiles, tool_profiles, tools, seccomp, bundle.profiles)
    for path, data in bundle.policies.items():
        known = path.endswith(".cedar") or path in (SIGNATURE, VERSION)
        if not (known and "/" not in path) and not is_filter(path):
            what = "not a *.cedar file, nor a filters/*.toml file"
            raise refuse("policy", what, field=f"policies/{path}", next_step="move or remove it")
        contents.plain(data)
    policies = {path: data for path, data in bundle.policies.items() if path != SIGNATURE}
    contents.archive(policies)
    config = parse_config(bundle.config, Path(bundle.config_path))
    if bundle.config:  # or else it is a look at the files alone
        _check_secrets(tools, bundle.tools, config)
    place = Place(bundle.config_path, bundle.config, "config")
    return Catalog(
        digest=bundle.digest,
        config=config,
        destinations=compile_rules(config.daemon.destinations, place, ("daemon", "destinations"), own=True),
        tools=tools,
        task_profiles=task_profiles,
        tool_profiles=tool_profiles,
        seccomp=seccomp,
        policies=policies,
        policy_version=_version(policies),
        filters=compile_filter_rules(policies),
        injections=compile_injection_rules(policies),
        signature=bundle.policies.get(SIGNATURE),
        contents=contents.found,
    )


class _VersionFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """bundle.toml, as written."""

    version: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]


def _version(policies: Mapping[str, bytes]) -> str:
    if VERSION not in policies:
        return ""
    return decode_toml(policies[VERSION], _VersionFile, f"policies/{VERSION}", "policy").version


_NARROWED = {
    "wall_ms": "wall",
    "cpu_s": "cpu_time",
    "output": "output",
    "open_files": "open_files",
    "file_size": "file_size",
}


def _check_together(
    tasks: Mapping[str, TaskProfile],
    tool_profiles: Mapping[str, ToolProfile],
    tools: Mapping[str, Manifest],
    seccomp: Mapping[str, bytes],
    texts: Mapping[str, bytes],
) -> None:
    """What only the whole catalogue can tell: names exist, and a tool profile narrows every task it is used in."""
    for task in tasks.values():
        place = _place(task.name, texts)
        if task.seccomp not in seccomp:
            raise place.wrong(f"seccomp: no filter profiles/seccomp/{task.seccomp[:64]}.json", "seccomp")
        for tool in task.tools:
            if tool not in tools:
                known = f"known tools: {', '.join(sorted(tools)) or 'none'}"
                raise place.wrong(f"tools: no tool `{tool[:64]}`", "tools", next_step=known)
            for secret in tools[tool].secrets:
                if secret.delivery not in task.delivery:
                    says = f"delivery = {list(task.delivery)}".replace("'", '"')
                    reason = (
                        f"tools: `{tool}` takes secret `{secret.name}` by {secret.delivery}; this profile has {says}"
                    )
                    step = f'add "{secret.delivery}" to delivery, or take the tool out'
                    raise place.wrong(reason, "tools", next_step=step)
            narrow = tool_profiles[tools[tool].profile]
            for attribute, key in _NARROWED.items():
                if getattr(narrow, attribute) > getattr(task.ceilings, attribute):
                    raise _place(narrow.name, texts).wrong(
                        f"{key}: is above the ceiling of task profile `{task.name}`, which lists `{tool}`",
                        key,
                        next_step="a tool profile may only narrow; lower it",
                    )


def _check_secrets(tools: Mapping[str, Manifest], texts: Mapping[str, bytes], config: Config) -> None:
    """Every secret that a manifest names is one that the broker could have."""
    for tool in tools.values():
        for secret in tool.secrets:
            if not config.secrets.names(secret.name):
                path = f"{tool.id}/tool.toml"
                known = f"[secrets.providers] has: {', '.join(sorted(config.secrets.providers)) or 'none'}"
                raise Place(f"tools/{path}", texts[path], "manifest").wrong(
                    f"secrets: nothing provides `{secret.name[:80]}`", "secrets", next_step=known
                )


def keeps_raw(profile: TaskProfile, tools: Mapping[str, Manifest]) -> tuple[str, ...]:
    """Those of its tools whose raw output the profile may have kept."""
    return tuple(name for name in profile.tools if profile.raw.get(tools[name].consequence, "never") != "never")


def check_escrow(catalog: Catalog, texts: Mapping[str, bytes]) -> None:
    """Raw output that a profile (of these texts) keeps is encrypted to somebody: it is never kept in clear, and never
    left out. Raises `RunnerError` (profile). For whoever puts the catalogue into force: by itself it is whole."""
    for task in catalog.task_profiles.values():
        if not catalog.config.escrow.recipients and (asked := keeps_raw(task, catalog.tools)):
            raise _place(task.name, texts).wrong(
                f"raw: it would be kept of {', '.join(asked[:4])}, and [escrow] in the configuration has no recipient",
                "raw",
                next_step="run `runner escrow init`, and add the recipient that it prints; or take `raw` out",
            )


def _place(profile: str, texts: Mapping[str, bytes]) -> Place:
    return Place(f"profiles/{profile}.toml", texts[f"{profile}.toml"], "profile")
