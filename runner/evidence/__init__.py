"""The read side of evidence: verify, list, show, follow, export. It reads files and trusts none of them.

Process: whoever asks (`runner trace`, an auditor's machine); never the daemon.
Input: a ledger folder, a content folder, the public key of the daemon that wrote them.
Trusts: the public key it was given, and what that key signed.
Does not trust: any file in either folder, their names, sizes and number.
Privilege: reading those folders. It writes nothing but the target of an export.
"""
