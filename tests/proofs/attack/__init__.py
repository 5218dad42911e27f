"""Attacks on commands, arguments and files: each is refused in our words or has the right result.

`python -m tests.proofs.attack [KIND …]` runs the whole, minutes on two cores.
"""
