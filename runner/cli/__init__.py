"""The command line: commands by noun; parse, ask, print.

Process: the operator's or the agent's own.
Input: arguments, files, the daemon's answers.
Trusts: whoever types.
Does not trust: text from traces and tools (shown with control characters escaped).
Privilege: the caller's. `exec` and `token mint` read the issuer's key; the daemon never does.
"""
