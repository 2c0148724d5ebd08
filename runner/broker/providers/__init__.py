"""Where credentials come from: the broker's own store, programs, Vault and OpenBao, OAuth 2.0 authorization servers.

Process: broker; each request in a thread of its own, bounded in time and bytes.
Input: answers of servers and programs.
Trusts: the configuration, for which path, scope or program is which secret.
Does not trust: the size, form, truth or speed of an answer.
Privilege: provider credentials, read for each request. Reaches servers through egress alone.
"""
