"""What operators may do to a running daemon: each a typed message, each an entry in the ledger.

Process: gate.
Input: frames on admin.sock.
Trusts: uids of `[peers] operators`, by SO_PEERCRED.
Does not trust: the form of what they send.
Privilege: gate's own: ends tasks, revokes authority; holds no key that could mint any.
"""
