"""Composition roots: one module per process, importing only what that process may hold.

Process: parent, gate, engine, recorder (each `python -m runner.serve.<name>`; parent by `runner serve`).
Input: inherited descriptors, the catalogue's bytes from parent.
Trusts: parent.
Does not trust: anything that arrives on agent.sock, a control connection or from a provider.
Privilege: parent and engine root; gate and recorder drop to their own users in an empty network namespace.
"""
