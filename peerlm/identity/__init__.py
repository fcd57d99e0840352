"""Who a node is and what it may do: keys, signed chains, invites, revocations and the gate.

Everything here is pure but `files`, which reads and writes the few private files. Trust starts at one
key, the run's root, and flows only through signatures that any node can check alone:

    root ─▶ invite ─▶ (invite ─▶)* enrolment ─▶ certificate

    canonical   one byte string for one value
    keys        Ed25519 for signing, X25519 for CURVE
    chain       the signed links and how a chain of them is checked
    root        the run's authority and the plan it signs
    invite      tokens, enrolling, renewing
    revocation  the grow-only set of what no longer counts
    gate        who is admitted right now, by id and by CURVE key
    files       the private files of a state directory
"""
