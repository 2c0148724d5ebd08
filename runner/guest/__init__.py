"""What runs inside a sandbox: PID 1 and the launchers it forks. Standard library only, nothing of runner but itself.

Process: guest: the supervisor is PID 1 of the container; each launcher is a child of it.
Input: gate's frames on the control connection; the tools' pipes.
Trusts: gate, whose frames arrive on a connection that was opened before any tool ran.
Does not trust: tools: their output, exit, leftovers and signals. No byte of theirs is interpreted here.
Privilege: the sandbox's own uid, no capabilities, no network; launchers narrow themselves further."""
