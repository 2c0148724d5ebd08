"""Root's side of a sandbox: containers made from a compiled profile, measured from outside, watched and removed.

Process: engine.
Input: sandbox plans from gate (a profile's name and digest, ids of ours), catalogue bytes from parent, Docker's
answers.
Trusts: parent; the kernel; Docker only as far as its work can be measured in /proc and the cgroup tree.
Does not trust: gate (it can name no image, mount, user or flag), PID 1 of a sandbox, whoever connects first.
Privilege: root and the Docker socket. Holds no token, no secret and no byte of an agent.
"""
