"""Merges of every method in a process of its own: `python -m tests.property.digests` prints a digest each.

For what is chosen once a process, such as the SIMD level (`RLMERGE_SIMD`).
"""

import json
import sys

from tests import merging
from tests.golden import inputs


def engine_digests() -> dict[str, str]:
    """A digest of the engine's output for every golden case."""
    out = {}
    for name, case in inputs.cases().items():
        merged = merging.merge(case.method, case.experts, case.base, parameters=case.parameters, **case.options)
        out[name] = merging.digest(merged)
    return out


if __name__ == "__main__":
    json.dump(engine_digests(), sys.stdout, indent=1)
