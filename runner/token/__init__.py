"""Capability tokens: the IETF draft draft-niyikiza-oauth-attenuating-agent-tokens, revision 02, to the letter.

Process: gate (verifies), clients (derive and prove), the command line (mints, inspects).
Input: token chains, proofs, key and credential files, as bytes and text of any peer.
Trusts: the configured trust anchors, nothing inside a token before its signature verified under one of them.
Does not trust: sizes, base64, JSON, headers, names, keys and constraints in tokens; another parser's reading of them.
Privilege: none. Pure: no sockets, files or clocks; time and token ids are arguments. The only importer of nacl.
"""
