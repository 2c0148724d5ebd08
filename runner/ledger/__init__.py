"""The format of evidence: entries, the Merkle tree over them, signed checkpoints. Shared by recorder and evidence.

Process: recorder (writes), any reader of traces, gate (builds entries).
Input: entry bytes, tree nodes, signed notes.
Trusts: nothing it cannot recompute or verify.
Does not trust: lengths, hashes and signatures in files.
Privilege: none. Pure: no sockets, clocks or files.
"""
