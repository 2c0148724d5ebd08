"""Gate's side of a sandbox: the plan of a call, the control connection, calls multiplexed on it.

Process: gate.
Input: grants (from gate/), frames from a guest.
Trusts: engine's word that the sandbox equals its profile.
Does not trust: the guest: every frame of it may come from a tool that took it over.
Privilege: one control connection per sandbox; no Docker, no host path.
"""
