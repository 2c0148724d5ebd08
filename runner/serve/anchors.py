"""Trust anchors: the issuers' public keys that the configuration names, one or a set in each file."""

from __future__ import annotations

from runner.config import Config
from runner.errors import refuse
from runner.token.claims import Anchors
from runner.token.keys import PublicKey, read_anchors


def anchors_of(config: Config, keys: dict[str, bytes]) -> Anchors:
    """The trust anchors that the config names, from the key files parent read."""
    found: dict[str, tuple[PublicKey, ...]] = {}
    for issuer in config.issuers:
        held, named = read_anchors(keys[issuer.public_key], issuer.public_key)
        if named and named != issuer.uri:
            raise refuse("config", f"the key belongs to issuer {named}, not {issuer.uri}", field=issuer.public_key)
        found[issuer.uri] = (*found.get(issuer.uri, ()), *held)
    return found


def thumbprints(anchors: Anchors) -> tuple[str, ...]:
    """The keys in force, as entries name them."""
    return tuple(sorted(key.thumbprint for keys in anchors.values() for key in keys))
