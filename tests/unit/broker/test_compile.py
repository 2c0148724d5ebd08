"""[secrets] as an operator writes it: what is wrong is said at its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.broker.providers.compile import Compiled, compile_providers
from runner.broker.providers.http import Network
from runner.config import parse_config
from runner.errors import RunnerError

GOOD = """\
state = "state"

[secrets]
ttl_s = 60

[secrets.providers.pass]
kind = "command"
[secrets.providers.pass.secrets.github]
argv = ["/usr/bin/pass", "show", "github"]

[secrets.providers.vault]
kind = "vault"
address = "https://vault.test:8200"
role_id = "role"
secret_id = "vault-secret-id"
[secrets.providers.vault.secrets.orders-db]
path = "database/creds/orders-rw"
read_path = "database/creds/orders-ro"
username = "username"
[secrets.providers.vault.secrets.api]
engine = "kv2"
path = "apps/api"
field = "key"

[secrets.providers.idp]
kind = "oauth"
token_endpoint = "https://idp.test/token"
client_id = "runner"
client_secret = "/etc/toolrunner/idp.secret"
[secrets.providers.idp.secrets.calendar]
scope = "read write"
read_scope = "read"
"""


def compiled(text: str) -> Compiled:
    data = text.encode()
    config = parse_config(data, Path("/etc/runner.toml"))
    return compile_providers(config.secrets, data, "/etc/runner.toml", Network, lambda name: b"")


def test_names_lead_to_providers() -> None:
    found = compiled(GOOD)
    for name in ("pass:github", "vault:orders-db", "vault:api", "idp:calendar"):
        provider, secret, made = found.of(name)
        assert f"{provider}:{secret}" == name
        assert made is found.provider(provider) is not None
    assert found.of("github") == ("", "github", None)
    for name in ("vault:other", "nobody:x", "pass:", ":github", "vault:api:x"):
        with pytest.raises(LookupError):
            found.of(name)
    assert found.provider("nobody") is None
    secrets = parse_config(GOOD.encode(), Path("/etc/runner.toml")).secrets
    for name in ("pass:github", "idp:calendar", "github", "a/b.c"):
        assert secrets.names(name)
    for name in ("vault:other", "nobody:x", "pass:", ":github", "", "../x", "a b", "github\n"):
        assert not secrets.names(name)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("ttl_s = 60", "ttl_s = 100000.0", 4, "longer than max_ttl_s"),
        ("ttl_s = 60", "ttl_s = 0", 4, ">"),
        ("ttl_s = 60", "tll_s = 60", 4, "unknown field"),
        ('kind = "command"', 'kind = "shell"', 7, "shell"),
        ('argv = ["/usr/bin/pass"', 'argv = ["pass"', 9, "whole path"),
        ('argv = ["/usr/bin/pass", "show", "github"]', "argv = []", 9, "length"),
        ("providers.pass", "providers.Pass", 6, "named like"),
        ('address = "https://vault.test:8200"', 'address = "vault.test:8200"', 13, "not an https"),
        ('address = "https://vault.test:8200"', 'address = "https://me@vault.test"', 13, "not an https"),
        ('address = "https://vault.test:8200"', 'address = "https://vault.test:82000"', 13, "not a URL"),
        ('role_id = "role"', 'token = "x"', 14, "give `token`"),
        ('role_id = "role"\n', "", 11, "give `token`"),
        ('secret_id = "vault-secret-id"', 'secret_id = "a b"', 15, "stored secret"),
        ('path = "database/creds/orders-rw"', 'path = "database/../sys/seal"', 17, "not a path"),
        ('path = "database/creds/orders-rw"', 'path = "database/creds/a?b"', 17, "not a path"),
        ('read_path = "database', 'read_path = "/database', 18, "not a path"),
        ('path = "apps/api"', 'path = "apps/api"\ndata = {a = "b"}', 23, "only for dynamic"),
        ('token_endpoint = "https://idp.test/token"', 'token_endpoint = "ftp://idp.test"', 27, "not an https"),
        ('read_scope = "read"', 'read_scope = "admin"', 32, "not a part"),
        ('scope = "read write"', 'subject_token = "a:b"\nscope = "read write"', 31, "stored secret"),
        ("secrets.calendar]", 'secrets."a:b"]', 30, "not a secret's name"),
    ],
)
def test_what_is_wrong_is_said_at_its_line(old: str, new: str, line: int, said: str) -> None:
    assert old in GOOD
    with pytest.raises(RunnerError) as caught:
        compiled(GOOD.replace(old, new))
    refused = caught.value.refused
    assert refused.code == "config"
    assert said in refused.reason
    found = re.fullmatch(r"/etc/runner\.toml(?::(\d+))?", refused.field)
    assert found
    assert int(found[1] or 0) == line


def test_authorities_that_are_none_are_refused() -> None:
    with pytest.raises(RunnerError) as caught:
        Network(trust=b"-----BEGIN CERTIFICATE-----\nno\n-----END CERTIFICATE-----\n")
    assert caught.value.refused.field == "egress.trust"
