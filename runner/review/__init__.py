"""What is told of policies before and after they are in force: cases, coverage, explanations, differences.

Process: the command line.
Input: folders of policies, tools and profiles; cases; recorded calls of a ledger and the content they name.
Trusts: the policy engine as gate uses it: everything told here was found by asking it.
Does not trust: cases, entries and their content; what cannot be compiled or read again is said to be so.
Privilege: none; reads files.

It decides nothing: gate never imports it.
"""
