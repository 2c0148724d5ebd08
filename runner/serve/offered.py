"""What parent offers, compiled by gate: whole, signed as it must be, and allowed on this word; or refused."""

from __future__ import annotations

import logging
from functools import lru_cache

from runner.admin.reload import Offered, Reloads, standing
from runner.admin.roster import roster, uids_of
from runner.catalog import check_escrow, compile_bundle
from runner.gate.serving import Serving
from runner.gate.signature import check
from runner.model import FilterRule, InjectionRule
from runner.serve.anchors import anchors_of, thumbprints
from runner.stream.inspect import Instructions
from runner.stream.patterns import Patterns
from runner.wire import parent

_log = logging.getLogger(__name__)


@lru_cache(maxsize=2)  # what is in force, and what is offered: a reload that changes no rule compiles none
def _patterns(rules: tuple[FilterRule, ...]) -> Patterns:
    return Patterns(rules)


@lru_cache(maxsize=2)
def _instructions(rules: tuple[InjectionRule, ...]) -> Instructions:
    return Instructions(rules)


def compiled(offer: parent.Offer, reloads: Reloads) -> Offered:
    """What would be put into force. Raises `RunnerError` with what is wrong with it first."""
    catalog = compile_bundle(offer.bundle)
    check_escrow(catalog, offer.bundle.profiles)
    signer = check(catalog, catalog.config.policy, offer.bundle.keys)
    serving = Serving.compile(catalog, _patterns(catalog.filters), _instructions(catalog.injections))
    anchors = anchors_of(catalog.config, offer.bundle.keys)
    agents = uids_of(catalog.config.peers.agents, "peers.agents")
    operators = roster(catalog.config)
    offered = standing(offer.bundle, catalog.config, serving.policies.digest, thumbprints(anchors))
    reloads.judge(offer.asked, offered, catalog.contents)
    _log.info("policy %s, signed by %s", serving.policies.digest[:16], signer or "no trusted key")
    if not serving.policies.all_rules:
        _log.warning("there is no rule in it: every call is refused")
    return Offered(serving, anchors, agents, operators, offered, reloads.request(offer.asked))
