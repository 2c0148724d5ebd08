"""Output on its way from the sandbox to the agent: filtered, capped, digested, kept.

Process: gate.
Input: raw output of tools.
Trusts: nothing in it.
Does not trust: its size, its encoding, its pace.
Privilege: none.
"""
