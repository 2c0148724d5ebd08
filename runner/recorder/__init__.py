"""The write side of evidence: appends typed entries, signs checkpoints, keeps the content that entries name.

Process: recorder, user `runner-recorder`, in an empty network namespace.
Input: messages of gate (`wire/recorder.py`): canonical entries and content.
Trusts: its own key and its own disk, and both only as far as they verify at open.
Does not trust: that gate keeps the order of a call (`ledger/sequence.py`), that the last run ended well, that a
    failed fsync can be repeated.
Privilege: the ledger key; write access to <state>/ledger and <state>/content and nothing else.
"""
