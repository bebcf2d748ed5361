"""Records the golden answers from the references: `python -m tests.golden.record`."""

import json
from pathlib import Path

from tests import merging
from tests.golden import inputs
from tests.reference import METHODS, mask

FOLDER = Path(__file__).parent
MASKS = [(0, "model.norm.weight", 0), (0, "model.norm.weight", 1), (2**64 - 1, "größe", 0), (1, "", 4_294_967_295)]


def reference_digests() -> dict[str, str]:
    """A digest of the references' output for every case."""
    out = {}
    for name, case in inputs.cases().items():
        merged = METHODS[case.method](case.base, case.experts, **case.parameters, **case.options)
        out[name] = merging.digest({n: m.rounded() for n, m in merged.items()})
    return out


def mask_words() -> list[dict]:
    """The first seventy numbers of the mask's stream, for a few keys."""
    return [
        {"seed": s, "tensor": t, "expert": e, "words": [f"{w:08x}" for w in mask.words(s, t, e, 70)]}
        for s, t, e in MASKS
    ]


if __name__ == "__main__":
    for file, content in (("digests.json", reference_digests()), ("mask.json", mask_words())):
        (FOLDER / file).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
