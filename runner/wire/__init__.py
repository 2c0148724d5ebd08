"""The languages spoken between processes: frames, and each pair's narrow set of messages.

Process: every one (a foundation that anyone may import).
Input: bytes of any peer.
Trusts: nothing; a decoded message is well-formed and hostile.
Does not trust: lengths, counts, depths, key order, key types.
Privilege: none. Pure: no sockets, clocks or files.
"""
