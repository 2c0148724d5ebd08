"""Secrets: a sealed store, providers of others' secrets, and leases of both, one call at a time.

Process: broker, as `runner-broker`, in a network namespace of its own in which egress answers on 127.0.0.1:3128.
Input: gate's requests, provider answers, the output of provider commands, files of its own folder.
Trusts: gate for who may have which lease; the configuration for where secrets come from; its master key.
Does not trust: the sizes, forms, times and promises of providers; its own files, which are sealed and checked.
Privilege: the master key, provider credentials. No Docker, no ledger, no agent bytes, no way out but egress.
"""
