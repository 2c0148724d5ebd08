"""Destinations and secrets of files: canonical in the model, and every way to be wrong is one error with its line."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runner.catalog import compile_bundle, read_folders
from runner.config import RuleFile, parse_config
from runner.errors import RunnerError
from runner.model import EgressRule, SecretRef

COUNT, SH, BASE = "tools/count/tool.toml", "tools/sh/tool.toml", "profiles/base.toml"
EGRESS = """
[[egress]]
name = "api"
host = "API.Example.com."
tls = "inspect"
methods = ["GET", "POST"]
paths = ["/v1/*", "/v2/{id}"]
up = "1MiB"
down = 2048
rate = 60
record = "digest"
keep = true

[[egress]]
name = "db"
host = "10.0.0.7"
ports = [5432, 5433]
protocol = "tcp"
addresses = ["10.0.0.0/24"]

[[egress]]
name = "mirror"
host = "*.bücher.example"
protocol = "http"
"""
SECRETS = """
[[secrets]]
name = "api-key"
variable = "API_KEY"
destinations = ["api"]
places = ["header:Authorization", "query:key", "basic", "body"]

[[secrets]]
name = "vault:kv/db#password"
variable = "DB_PASSWORD"
delivery = "file"
"""


def with_rules(folders: Any, path: str = COUNT, text: str = EGRESS) -> Any:
    before = (folders.root / path).read_text()
    folders.write(path, before + text)
    return folders


def test_rules_and_secrets_in_canonical_form(folders: Any) -> None:
    with_rules(folders, COUNT, EGRESS + SECRETS)
    folders.edit(BASE, 'seccomp = "base"', 'seccomp = "base"\ndelivery = ["inject", "file"]')
    with_rules(folders, BASE)
    catalog = folders.compile()
    tool, task = catalog.tools["count"], catalog.task_profiles["base"]
    assert tool.egress == task.egress
    assert tool.egress == (
        EgressRule(
            name="api",
            host="api.example.com",
            ports=(443,),
            inspect=True,
            methods=("GET", "POST"),
            paths=("/v1/*", "/v2/{id}"),
            up=1 << 20,
            down=2048,
            rate=60,
            record="digest",
            keep=True,
        ),
        EgressRule(name="db", host="10.0.0.7", ports=(5432, 5433), protocol="tcp", addresses=("10.0.0.0/24",)),
        EgressRule(name="mirror", host="*.xn--bcher-kva.example", ports=(80,), protocol="http"),
    )
    assert tool.secrets == (
        SecretRef(
            name="api-key",
            variable="API_KEY",
            destinations=("api",),
            places=("header:authorization", "query:key", "basic", "body"),
        ),
        SecretRef(name="vault:kv/db#password", variable="DB_PASSWORD", delivery="file"),
    )
    assert task.delivery == ("inject", "file")
    assert catalog.task_profiles["base"].digest != ""


def test_without_a_word_nothing_is_open(folders: Any) -> None:
    catalog = folders.compile()
    assert [tool.egress + tool.secrets for tool in catalog.tools.values()] == [(), ()]
    assert catalog.task_profiles["base"].egress == ()
    assert catalog.task_profiles["base"].delivery == ("inject",)
    assert catalog.destinations == ()


# text to find in EGRESS + SECRETS, its replacement, the line within it of the error, part of the reason
WRONG = [
    ('name = "api"', 'name = "Api"', 3, "does not match"),
    ('name = "db"', 'name = "api"', 15, "name of another one"),
    ('host = "API.Example.com."', 'host = "api.example.com:443"', 4, "letters, digits and hyphens"),
    ('host = "API.Example.com."', 'host = "https://api.example.com"', 4, "letters, digits and hyphens"),
    ('host = "API.Example.com."', 'host = "a@b.example"', 4, "letters, digits and hyphens"),
    ('host = "API.Example.com."', 'host = "*.com"', 4, "top-level domain"),
    ('host = "API.Example.com."', 'host = "**"', 4, "letters, digits and hyphens"),
    ('host = "API.Example.com."', 'host = "0177.0.0.1"', 4, "ends in a number"),
    ('host = "API.Example.com."', 'host = "127.0.0.1"', 4, "always denied"),
    ('host = "API.Example.com."', 'host = "::ffff:10.0.0.1"', 4, "10.0.0.1 is private"),
    ('host = "API.Example.com."', 'host = "xn--a.example"', 4, "IDNA"),
    ('host = "API.Example.com."\n', "", 2, "missing required field `host`"),
    ('tls = "inspect"', 'tls = "off"', 5, "Invalid enum value"),
    ('tls = "inspect"\n', "", 5, "opaque"),
    ('methods = ["GET", "POST"]', 'methods = ["get"]', 6, "upper case"),
    ('methods = ["GET", "POST"]', 'methods = ["TRACE"]', 6, "refused"),
    ('methods = ["GET", "POST"]', 'methods = ["GET", "GET"]', 6, "twice"),
    ('"/v1/*"', '"/v1/../*"', 7, "dot segment"),
    ('"/v1/*"', '"/v1*"', 7, "only at the end"),
    ('"/v1/*"', '"v1/*"', 7, "/ first"),
    ('"/v1/*"', '"/%61/*"', 7, "canonical"),
    ('"1MiB"', '"1 meg"', 8, "not a size"),
    ("down = 2048", "down = -1", 9, "not a size"),
    ("rate = 60", "rate = -1", 10, "requests a minute"),
    ("rate = 60", 'rate = "60"', 10, "Expected `int`"),
    ('"digest"', '"none"', 11, "Invalid enum value"),
    ("keep = true", "keep = true\ncolour = 1", 13, "unknown field `colour`"),
    ("[5432, 5433]", "[0]", 17, "from 1 to 65535"),
    ("[5432, 5433]", "[5432, 5432]", 17, "twice"),
    ("ports = [5432, 5433]\n", "", 14, "no port by default"),
    ('protocol = "tcp"', 'protocol = "tcp"\nmethods = ["GET"]', 19, "tcp carries no requests"),
    ('protocol = "tcp"', 'protocol = "tcp"\npaths = ["/"]', 19, "tcp carries no requests"),
    ('protocol = "tcp"', 'protocol = "tcp"\ntls = "inspect"', 19, "no TLS"),
    ('protocol = "tcp"', 'protocol = "udp"', 18, "Invalid enum value"),
    ('["10.0.0.0/24"]', '["0.0.0.0/0"]', 19, "wider"),
    ('["10.0.0.0/24"]', '["8.8.8.0/24"]', 19, "free already"),
    ('["10.0.0.0/24"]', '["10.0.0.1/24"]', 19, "not a range"),
    ('["10.0.0.0/24"]', '["10.0.1.0/24"]', 16, "always denied"),
    ('protocol = "http"', 'protocol = "http"\ntls = "inspect"', 25, "no TLS"),
    ('name = "api-key"', 'name = "../key"', 27, "does not match"),
    ('name = "vault:kv/db#password"', 'name = "api-key"', 33, "name of another one"),
    ('"API_KEY"', '"api_key"', 28, "does not match"),
    ('"API_KEY"', '"LD_PRELOAD"', 28, "how programs run"),
    ('"API_KEY"', '"PATH"', 28, "how programs run"),
    ('"API_KEY"', '"HTTPS_PROXY"', 28, "how programs run"),
    ('"API_KEY"', '"SSL_CERT_FILE"', 28, "how programs run"),
    ('"API_KEY"', '"PYTHONPATH"', 28, "how programs run"),
    ('"DB_PASSWORD"', '"API_KEY"', 34, "another secret"),
    ('destinations = ["api"]', 'destinations = ["web"]', 29, "no [[egress]] rule `web`"),
    ('destinations = ["api"]', 'destinations = ["db"]', 29, "cannot be read"),
    ('destinations = ["api"]\n', "", 26, "needs the names"),
    ('places = ["header:Authorization", "query:key", "basic", "body"]\n', "", 26, "needs the places"),
    ('"header:Authorization"', '"header:Host"', 30, "frames a request"),
    ('"header:Authorization"', '"header:Content-Length"', 30, "frames a request"),
    ('"header:Authorization"', '"header:Proxy-Authorization"', 30, "frames a request"),
    ('"header:Authorization"', '"header:a b"', 30, "is not header:NAME"),
    ('"header:Authorization"', '"header:"', 30, "is not header:NAME"),
    ('"header:Authorization"', '"header:x\\r\\ny"', 30, "is not header:NAME"),
    ('"header:Authorization"', '"cookie"', 30, "is not header:NAME"),
    ('"basic"', '"basic:x"', 30, "is not header:NAME"),
    ('"query:key"', '"query:a&b"', 30, "is not header:NAME"),
    ('delivery = "file"', 'delivery = "stdin"', 35, "Invalid enum value"),
    ('delivery = "file"', 'delivery = "file"\ndestinations = ["api"]', 36, "anywhere"),
    ('delivery = "file"', 'delivery = "file"\nplaces = ["basic"]', 36, "anywhere"),
]


@pytest.mark.parametrize(("old", "new", "line", "says"), WRONG)
def test_a_wrong_rule_or_secret(folders: Any, old: str, new: str, line: int, says: str) -> None:
    folders.edit(BASE, 'seccomp = "base"', 'seccomp = "base"\ndelivery = ["inject", "file"]')
    before = len((folders.root / COUNT).read_text().splitlines())
    with_rules(folders, COUNT, EGRESS + SECRETS)
    assert folders.compile()
    folders.edit(COUNT, old, new)
    refused = folders.refusal()
    assert (refused.code, refused.field) == ("manifest", f"{COUNT}:{before + line}")
    assert says in refused.reason
    assert refused.next_step


def test_a_wrong_rule_of_a_profile(folders: Any) -> None:
    with_rules(folders, BASE)
    assert folders.compile()
    folders.edit(BASE, '"*.bücher.example"', '"*.example"')
    refused = folders.refusal()
    assert (refused.code, refused.field) == ("profile", f"{BASE}:38")
    assert "egress `mirror`: host: `*.example`" in refused.reason


@pytest.mark.parametrize(("value", "says"), [('["inject", "inject"]', "twice"), ('["disk"]', "Invalid enum value")])
def test_a_wrong_delivery_of_a_profile(folders: Any, value: str, says: str) -> None:
    folders.edit(BASE, 'seccomp = "base"', f'seccomp = "base"\ndelivery = {value}')
    refused = folders.refusal()
    assert (refused.code, refused.field, says in refused.reason) == ("profile", f"{BASE}:6", True)


@pytest.mark.parametrize("text", [EGRESS, '[[secrets]]\nname = "k"\nvariable = "K"\ndelivery = "env"\n'])
def test_what_uses_network_or_secrets_has_a_jail_of_its_own(folders: Any, text: str) -> None:
    folders.edit(BASE, 'seccomp = "base"', 'seccomp = "base"\ndelivery = ["inject", "env"]')
    with_rules(folders, COUNT, text)
    assert folders.compile()
    folders.edit("profiles/narrow.toml", 'isolation = "call"', 'isolation = "launcher"')
    refused = folders.refusal()
    assert (refused.code, refused.field) == ("manifest", f"{COUNT}:4")
    assert "needs its own" in refused.reason
    assert 'isolation = "call"' in refused.next_step


def test_a_profile_says_how_secrets_reach_its_tools(folders: Any) -> None:
    with_rules(folders, COUNT, EGRESS + SECRETS)
    refused = folders.refusal()
    assert (refused.code, refused.field) == ("profile", f"{BASE}:6")
    assert "takes secret `vault:kv/db#password` by file" in refused.reason
    folders.edit(BASE, 'seccomp = "base"', 'seccomp = "base"\ndelivery = []')
    assert "by inject" in folders.refusal().reason


def test_the_daemon_s_own_destinations(folders: Any, tmp_path: Path) -> None:
    def compiled(text: str) -> Any:
        bundle = read_folders(
            folders.root / "profiles",
            folders.root / "tools",
            folders.root / "policies",
            config_path=tmp_path / "runner.toml",
            config_bytes=text.encode(),
        )
        return compile_bundle(bundle)

    text = '[[daemon.destinations]]\nname = "keys"\nhost = "Keys.Example.com"\n'
    (rule,) = compiled(text).destinations
    assert (rule.name, rule.host, rule.ports) == ("keys", "keys.example.com", (443,))
    with pytest.raises(RunnerError) as caught:
        compiled(text + text.replace("Keys.Example.com", "10.0.0.1").replace('"keys"', '"vault"'))
    assert caught.value.refused.code == "config"
    assert caught.value.refused.field == f"{tmp_path / 'runner.toml'}:6"
    for more, key in (('protocol = "http"\nkeep = true\n', "keep"), ('record = "digest"\n', "record")):
        with pytest.raises(RunnerError, match=r"belongs to no call|never kept") as caught:
            compiled(text + more)
        assert key in caught.value.refused.reason
    assert parse_config(text.encode(), tmp_path / "runner.toml").daemon.destinations[0] == RuleFile(
        name="keys", host="Keys.Example.com"
    )


def test_too_many(make_folders: Callable[[str], Any]) -> None:
    def folders(name: str, text: str) -> Any:
        return with_rules(make_folders(name), COUNT, text)

    rules = [f'[[egress]]\nname = "r{number}"\nhost = "h{number}.example.com"\n' for number in range(257)]
    assert folders("most", "".join(rules[:-1])).compile()
    assert "more than 256" in folders("more", "".join(rules)).refusal().reason
    ports = f'[[egress]]\nname = "p"\nhost = "h.example.com"\nports = {list(range(1, 66))}\n'
    assert "more than 64" in folders("ports", ports).refusal().reason
    assert tomllib.loads(ports)["egress"]


def test_a_secret_that_nothing_provides_is_refused_where_there_is_a_configuration(folders: Any) -> None:
    held = '[[secrets]]\nname = "vault:db"\nvariable = "DB_PASSWORD"\ndelivery = "file"\n'
    with_rules(folders, text=held)
    folders.edit(BASE, 'kind = "task"', 'kind = "task"\ndelivery = ["file"]')
    folders.compile()  # by itself it is whole
    given = (folders.root / name for name in ("profiles", "tools", "policies"))
    bundle = read_folders(*given, config_bytes=b'run = "run"\n')
    with pytest.raises(RunnerError) as caught:
        compile_bundle(bundle)
    assert caught.value.refused.field.startswith(COUNT)
    assert "nothing provides `vault:db`" in caught.value.refused.reason
    provider = (
        '[secrets.providers.vault]\nkind = "command"\n[secrets.providers.vault.secrets.db]\nargv = ["/bin/true"]\n'
    )
    compile_bundle(
        read_folders(
            *(folders.root / name for name in ("profiles", "tools", "policies")), config_bytes=provider.encode()
        )
    )


ANYWHERE = """
[[egress]]
name = "any"
host = "*"
tls = "inspect"
"""


def test_only_a_manifest_may_leave_its_hosts_to_the_profile(folders: Any) -> None:
    with_rules(folders, COUNT, ANYWHERE)
    assert folders.compile().tools["count"].egress[0].host == "*"
    with_rules(folders, BASE, ANYWHERE)
    refused = folders.refusal()
    assert (refused.code, refused.field.partition(":")[0]) == ("profile", BASE)
    assert "only a tool's manifest may leave that to the task profile" in refused.reason


def test_a_credential_needs_a_rule_that_names_its_host(folders: Any) -> None:
    secret = '[[secrets]]\nname = "k"\nvariable = "K"\ndestinations = ["any"]\nplaces = ["basic"]\n'
    with_rules(folders, COUNT, ANYWHERE.replace('"*"', '"api.example.com"') + secret)
    assert folders.compile().tools["count"].secrets[0].destinations == ("any",)
    folders.edit(COUNT, '"api.example.com"', '"*"')
    refused = folders.refusal()
    assert (refused.code, "the credential would go wherever the profile leads" in refused.reason) == ("manifest", True)
    assert "copy the tool" in refused.next_step
