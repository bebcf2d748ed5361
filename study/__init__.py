"""The study: does reinforcement learning make models that merge better, and why?

Not part of the package `rlmerge`; `study/README.md` says how to run it.
"""
