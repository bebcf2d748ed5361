"""Recorded answers: output bits depend on inputs, recipe and seed only, not on machine, version or day.

`digests.json` and `mask.json` were recorded from the references, never from the engine:
`python -m tests.golden.record`. A change of either file is a change of what rlmerge promises.
"""
