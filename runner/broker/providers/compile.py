"""[secrets] into providers. Whatever is wrong is said at its line, before any of it is in force."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runner.broker.providers.command import Command
from runner.broker.providers.provider import Provider
from runner.config import CommandProvider, OAuthProvider, Secrets, VaultProvider
from runner.errors import RunnerError, refuse
from runner.wire.broker import NAME

if TYPE_CHECKING:
    from runner.broker.providers.http import Network

PROVIDER = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}\Z")  # of Vault's API; no `..`, which is looked for apart


class Compiled:
    """The providers of one configuration, and which secrets each has."""

    def __init__(self, providers: dict[str, Provider], secrets: dict[str, frozenset[str]]) -> None:
        self._providers = providers
        self._secrets = secrets

    def of(self, name: str) -> tuple[str, str, Provider | None]:
        """The provider, its own name of the secret, and itself: ("", name, None) for a stored one; a `LookupError` for
        one that nothing here provides."""
        provider, colon, secret = name.partition(":")
        if not colon:
            return "", name, None
        if secret not in self._secrets.get(provider, ()):
            raise LookupError(name)
        return provider, secret, self._providers[provider]

    def provider(self, name: str) -> Provider | None:
        """The provider of this name, if there still is one."""
        return self._providers.get(name)


class _Place:
    """Where in the file something stands: `file:line` of the key in its table, as near as it can be told."""

    def __init__(self, text: bytes, path: str) -> None:
        self._lines = text.decode("utf-8", "replace").splitlines()
        self._path = path

    def wrong(self, table: str, key: str, reason: str) -> RunnerError:
        """The refusal of one key of a table."""
        header = re.compile(r"\s*\[\s*" + r"\s*\.\s*".join(map(_key, table.split("\0"))) + r"\s*\]")
        begin = next((number for number, line in enumerate(self._lines, 1) if header.match(line)), 0)
        at = begin
        if begin and key:
            for number, line in enumerate(self._lines[begin:], begin + 1):
                if line.lstrip().startswith("["):
                    break
                if re.match(r"\s*" + _key(key) + r"\s*=", line):
                    at = number
                    break
        dotted = table.replace("\0", ".") + (f".{key}" if key else "")
        return refuse("config", f"{dotted}: {reason}", field=f"{self._path}:{at}" if at else self._path)


def _key(name: str) -> str:
    """A TOML key, bare or quoted."""
    return rf"[\"']?{re.escape(name)}[\"']?"


def compile_providers(
    secrets: Secrets, text: bytes, path: str, network: Callable[[], Network], credential: Callable[[str], bytes]
) -> Compiled:
    """The providers that [secrets] of the file `text` names. `credential` reads the providers' own credentials. What
    speaks to servers is imported where a provider has one: it takes more memory than the rest of the broker.

    Raises `RunnerError` (config) naming file and line."""
    place = _Place(text, path)
    if secrets.ttl_s > secrets.max_ttl_s:
        raise place.wrong("secrets", "ttl_s", "longer than max_ttl_s")
    made: dict[str, Provider] = {}
    names: dict[str, frozenset[str]] = {}
    for name, config in secrets.providers.items():
        table = f"secrets\0providers\0{name}"
        if not PROVIDER.match(name):
            raise place.wrong(table, "", "a provider is named like `vault`: a-z, 0-9, _ and -")
        for secret in config.secrets:
            if not NAME.match(secret):
                raise place.wrong(f"{table}\0secrets\0{secret}", "", "not a secret's name: letters, digits and ._/-")
        names[name] = frozenset(config.secrets)
        match config:
            case CommandProvider():
                _check_command(config, table, place)
                made[name] = Command(name, config)
            case VaultProvider():
                _check_vault(config, table, place)
                from runner.broker.providers.vault import Vault

                made[name] = Vault(name, config, network(), credential)
            case OAuthProvider():
                _check_oauth(config, table, place)
                from runner.broker.providers.oauth import OAuth

                made[name] = OAuth(name, config, network(), credential)
    return Compiled(made, names)


def _check_command(config: CommandProvider, table: str, place: _Place) -> None:
    for name, secret in config.secrets.items():
        for key, argv in (("argv", secret.argv), ("read_argv", secret.read_argv)):
            if (argv and not argv[0].startswith("/")) or any("\0" in word for word in argv):
                raise place.wrong(f"{table}\0secrets\0{name}", key, "name the program by its whole path")
        if secret.username and not secret.field:
            raise place.wrong(f"{table}\0secrets\0{name}", "username", "`field` must name the secret's member too")


def _check_vault(config: VaultProvider, table: str, place: _Place) -> None:
    _check_url(config.address, table, "address", place)
    approle = bool(config.role_id) and bool(config.secret_id)
    if bool(config.role_id) != bool(config.secret_id) or approle == bool(config.token):
        raise place.wrong(table, "token" if config.token else "", "give `token`, or `role_id` and `secret_id`")
    _check_credential(config.token or config.secret_id, table, "token" if config.token else "secret_id", place)
    for name, secret in config.secrets.items():
        for key, path in (("path", secret.path), ("read_path", secret.read_path), ("mount", secret.mount)):
            if (path or key == "path") and (not _PATH.match(path) or ".." in path or "//" in path):
                raise place.wrong(f"{table}\0secrets\0{name}", key, "not a path: letters, digits and ._/-, no `..`")
        if secret.data and secret.engine == "kv2":
            raise place.wrong(f"{table}\0secrets\0{name}", "data", "only for dynamic secrets")


def _check_oauth(config: OAuthProvider, table: str, place: _Place) -> None:
    _check_url(config.token_endpoint, table, "token_endpoint", place)
    if config.revocation_endpoint:
        _check_url(config.revocation_endpoint, table, "revocation_endpoint", place)
    _check_credential(config.client_secret, table, "client_secret", place)
    for name, secret in config.secrets.items():
        if secret.subject_token:
            _check_credential(secret.subject_token, f"{table}\0secrets\0{name}", "subject_token", place)
        if secret.read_scope and not set(secret.read_scope.split()) <= set(secret.scope.split()):
            raise place.wrong(f"{table}\0secrets\0{name}", "read_scope", "not a part of `scope`")


def _check_url(url: str, table: str, key: str, place: _Place) -> None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise place.wrong(table, key, "not a URL") from None
    if parts.scheme not in ("https", "http") or not parts.hostname or port == 0 or parts.username or parts.fragment:
        raise place.wrong(table, key, "not an https (or http) URL without user and fragment")


def _check_credential(name: str, table: str, key: str, place: _Place) -> None:
    if not name.startswith("/") and not NAME.match(name):
        raise place.wrong(table, key, "the name of a stored secret, or the whole path of a file")
