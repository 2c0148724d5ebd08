"""`runner doctor`: what this host can and cannot do for the daemon, each finding with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runner.catalog import Catalog, compile_bundle, read_folders, shared
from runner.cli.checks import Finding, engine_findings, host_findings, place_findings, web_image
from runner.cli.egress_checks import egress_findings
from runner.cli.escrow_checks import escrow_findings
from runner.cli.keys import read_public_file
from runner.cli.operator_checks import operator_findings
from runner.cli.tables import print_json, print_table
from runner.config import Config, load_config
from runner.engine import image
from runner.engine.docker import Docker
from runner.engine.host import host_facts
from runner.errors import EXIT_OK, EXIT_UNAVAILABLE, RunnerError
from runner.gate.signature import check
from runner.model import TaskProfile


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", help="The daemon's configuration; its defaults otherwise.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check kernel, Docker, cgroups, users, operators, egress, secrets, escrow, folders, sockets, disk and image. Exit
    status 4 when something fails."""
    settings = load_config(config)[0] if config else Config()
    findings = examine(settings)
    if json:
        print_json(findings)
    else:
        rows = [(each.status, each.name, each.found, each.remedy) for each in findings]
        print_table(("", "check", "found", "remedy"), rows)
        failed, warned = (sum(each.status == word for each in findings) for word in ("fail", "warn"))
        print(
            f"\n{len(findings)} checks, {failed or 'none'} failed" + (f", {warned} to know of (warn)" if warned else "")
        )
    raise typer.Exit(status(findings))


def examine(config: Config) -> list[Finding]:
    """Every finding about this host, for this configuration."""
    catalog, wrong = _catalog(config)
    return [
        *host_findings(config),
        *operator_findings(config),
        *_engine(config, list(catalog.task_profiles.values()) if catalog else []),
        *wrong,
        *egress_findings(config, catalog),
        *escrow_findings(config, catalog),
        *place_findings(config),
    ]


def status(findings: list[Finding]) -> int:
    """The exit status: warnings do not fail."""
    return EXIT_UNAVAILABLE if any(each.status == "fail" for each in findings) else EXIT_OK


def _engine(config: Config, profiles: list[TaskProfile]) -> list[Finding]:
    try:
        docker = Docker(config.sandboxes.docker_host, timeout_s=10)
        wanted = config.sandboxes.image or image.tag()
        facts, found = host_facts(docker), docker.image(wanted)
    except RunnerError as error:
        return [Finding(name="docker", status="fail", found=error.refused.reason, remedy=error.refused.next_step)]
    web = [each.name for each in profiles if each.image == image.WEB.repository]
    asked = [web_image(docker.image(image.tag(image.WEB)), image.WEB, web)] if web else []
    return [*engine_findings(facts, found, wanted, image.inputs_digest(), profiles), *asked]


def _catalog(config: Config) -> tuple[Catalog | None, list[Finding]]:
    """The catalogue that this configuration serves; or what is wrong with it: not whole, or not signed as it has to
    be."""
    try:
        return _compiled(config), []
    except RunnerError as error:
        wrong = Finding(name="catalogue", status="fail", found=str(error), remedy="runner profile check")
        return None, [wrong]


def _compiled(config: Config) -> Catalog:
    names = ("profiles", "tools", "policies")
    folders = [Path(getattr(config, name)) if getattr(config, name) else shared(name) for name in names]
    catalog = compile_bundle(read_folders(*folders))
    check(catalog, config.policy, {path: read_public_file(Path(path)) for path in config.policy.public_keys})
    return catalog
