"""What operators may do to a running daemon: each a typed message, each an entry in the ledger.

Process: gate.
Input: frames on admin.sock.
Trusts: whom `[[operators]]` names, by the proof of a key or by SO_PEERCRED; each within its roles.
Does not trust: the form of what they send.
Privilege: gate's own: ends tasks, revokes authority; holds no key that could mint any.
"""
