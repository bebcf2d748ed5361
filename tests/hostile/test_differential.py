"""Thousands of damaged files, given to rlmerge and to the reference implementation: never laxer, and stricter only for
documented reasons. The Rust tests do the same against the crate; this is the package that users have.
"""

import json
import os
import random

import pytest
import safetensors

import rlmerge
from tests.hostile.corpus import CASES

# As in rust/rlmerge-core/tests/agreement/mod.rs.
STRICTER = (
    "in the header twice",
    "duplicate key",
    "more than 64 dimensions",
    "more than 500000 tensors",
    "expected an object with `dtype`",
    "expected `dtype` as a string",
)
WORDS = [
    b"0", b"1", b"8", b"-1", b"-0", b"1.0", b"18446744073709551615", b"null", b"true", b'"U8"', b'"F4"', b'"BF16"',
    b"[", b"]", b"{", b"}", b"{}", b"[]", b",", b":", b'"', b"\\", b"\\u0061", b"\\ud800", b"\n", b" ", b"\0", b'"a":',
    b'"dtype":', b'"shape":', b'"data_offsets":', b'"__metadata__":', b'["U8",[8],[0,8]]', b'{"U8":null}', b"\xff",
]  # fmt: skip
# Changes that leave JSON behind, so that later rules are reached too.
TURNS = [
    (b"}", b',"y":1}'), (b"}", b',"y":1,"y":1}'), (b"{", b"{ "), (b",", b" ,\n"), (b'"a"', b'"b"'),
    (b'"a"', b'"\\u0061"'),
    (b'"U8"', b'"I8"'), (b'"U8"', b'"F8_E4M3"'), (b'"U8"', b'"F64"'), (b'"U8"', b'{"U8":null}'), (b"[8]", b"[2,4]"),
    (b"[8]", b"[8,1]"), (b"[8]", b"[1,2,2,2]"), (b"[8]", b"[0,8]"), (b"[8]", b"[]"), (b"[0,8]", b"[0,0]"),
    (b"[0,8]", b"[8,16]"),
    (b'{"a"', b'{"__metadata__":{"k":"v"},"a"'), (b'{"a"', b'{"__metadata__":{"k":"1","k":"2"},"a"'),
    (b'{"a"', b'{"z":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a"'),
    (b'{"a"', b'{"a":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},"a"'),
]  # fmt: skip
ROUNDS = int(os.environ.get("RLMERGE_DIFFERENTIAL_ROUNDS", "3000"))


def seeds(folder):
    """The small single files of the corpus that the reference opens: what is broken already only gets more so."""
    for case in CASES:
        if case.reference:
            (at := folder / case.name).mkdir()
            content = case.build(at).read_bytes()
            if 8 < len(content) < 500:
                yield content


def damaged(rng: random.Random, content: bytes) -> bytes:
    """A file with a few changes, most often with a true length again."""
    header, data = bytearray(content[8:]), b""
    if (end := header.rfind(b"}") + 1) > 0:
        header, data = header[:end], bytes(header[end:])
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        at = rng.randrange(len(header) + 1)
        if rng.random() < 0.6:
            old, new = rng.choice(TURNS)
            if (found := header.find(old, at)) >= 0 or (found := header.find(old)) >= 0:
                header[found : found + len(old)] = new
            continue
        match rng.randrange(4):
            case 0:
                header[at:at] = rng.choice(WORDS)
            case 1:
                header[at : at + rng.randint(1, 6)] = rng.choice(WORDS)
            case 2:
                del header[at : at + rng.randint(1, 4)]
            case _ if at < len(header):
                header[at] = rng.randrange(256)
            case _:
                pass
    length = len(header) if rng.random() < 0.9 else rng.choice([0, 1, len(header) + 1, 2**63, 10**8 + 1])
    return length.to_bytes(8, "little") + bytes(header) + data


def names_in(content: bytes) -> list[str]:
    """Names of the entries of a header, as often as they are there."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length], object_pairs_hook=lambda pairs: [name for name, _ in pairs])


def test_rlmerge_and_the_package_agree(tmp_path):
    rng = random.Random(5)
    (made := tmp_path / "seeds").mkdir()
    contents = list(seeds(made))
    path = tmp_path / "model.safetensors"
    seen = {"both open": 0, "both refuse": 0, "only rlmerge refuses": 0}
    for _ in range(ROUNDS):
        content = damaged(rng, rng.choice(contents))
        path.write_bytes(content)
        try:
            theirs = {name: info for name, info in safetensors.deserialize(content)}
        except safetensors.SafetensorError:
            theirs = None
        try:
            ours = {t.name: t for t in rlmerge.inspect(path).tensors}
        except rlmerge.CheckpointError as error:
            assert path.name in str(error)
            if theirs is None:
                seen["both refuse"] += 1
            else:
                # The reference does not look at the first of two entries of one name; it may be anything.
                hidden = error.tensor is not None and names_in(content).count(error.tensor) > 1
                documented = hidden or any(reason in str(error) for reason in STRICTER)
                assert documented, f"only rlmerge refuses {content!r}: {error}"
                seen["only rlmerge refuses"] += 1
            continue
        assert theirs is not None, f"only the reference refuses {content!r}"
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert (tensor.dtype, list(tensor.shape)) == (theirs[name]["dtype"], list(theirs[name]["shape"]))
            assert tensor.bytes == len(theirs[name]["data"])
        seen["both open"] += 1
    print(seen)
    assert min(seen.values()) > ROUNDS // 20, seen


def test_every_documented_reason_is_reached():
    reasons = pytest.importorskip("tests.hostile.table").PAGE.read_text()
    for reason in STRICTER:
        if "500000" not in reason:
            assert reason.replace("`", "'") in reasons
