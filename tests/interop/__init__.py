"""transformers opens what rlmerge writes.

A second stage, because it needs torch: `pytest tests/interop` in an environment with torch, transformers and rlmerge.
"""
