"""The one way out: what a call may reach, and the proxy that carries it there.

Process: egress, as user runner-egress, in the host's network namespace; gate and the command line import the pure part
(`allowlist`).
Input: requests of sandboxes and answers of remote servers, byte for byte; gate's messages.
Trusts: gate's messages: the listener that came with a call, its allowlists, its credentials, its answers.
Does not trust: anything that passes a listener: names, heads, certificates, lengths, pace; what a resolver answers.
Privilege: the only outbound network of the system; the credentials of live calls. No Docker, no ledger, no store.
"""
