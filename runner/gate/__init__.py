"""Gate: who asks, and whether this task may do this now. The one process that reads agents' bytes and decides.

Process: gate, as user runner-gate, in an empty network namespace.
Input: token chains, proofs and arguments of agents; policy bundles and announcements of the operator; time.
Trusts: the configured trust anchors and policies, and its own state of tasks, revocations and replays.
Does not trust: anything an agent says: names, sizes, numbers, clocks, and JSON that two parsers could read two ways.
Privilege: none beyond its sockets. Holds verification keys only: no signing key, no secret store, no Docker, no route.
"""
