"""What gate must remember across restarts, in one SQLite file with one writer.

Process: gate.
Input: ledger entries, by position: the ledger is written first, and this file only ever follows it.
Trusts: the recorder's answers.
Does not trust: itself to be up to date; at start, gate applies what the ledger has and this file has not.
Privilege: the state file, 0600, of gate's user.
"""
