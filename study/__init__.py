"""The study of whether, and why, reinforcement learning makes models that merge better.

Not part of the package `rlmerge`; `study/README.md` says how to run it.
"""
