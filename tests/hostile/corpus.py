"""Hostile inputs, made from the rules of the format: what is wrong with each, and what an error about it must name.

`python -m tests.hostile.corpus FOLDER` writes them all, one folder a case, for other readers to be tried on. Nothing in
them was taken from another project.
"""

import json
import os
import pickle
import socket
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
DTYPES = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes
    ----------
    name, rule
        Its name, and the rule that it breaks.
    build
        Makes it below a folder and returns the path to open.
    code
        The code that the error must have; None for what opens, perhaps with a warning.
    file
        The file that the error must name; None where it is the path itself.
    tensor
        The tensor that it must name, where there is one.
    reference
        Whether the reference implementation opens the bytes; None where it was not asked: it reads no indexes, and
        what is no file it does not get as bytes.
    """

    name: str
    rule: str
    build: Callable[[Path], Path]
    code: str | None
    file: str | None = None
    tensor: str | None = None
    reference: bool | None = None


def framed(header: bytes | str, data: int = 0, length: int | None = None) -> bytes:
    """A file of a header and tensor bytes; its length field is true unless another one is given."""
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + b"\x07" * data


def entry(name: str = "a", dtype: str = '"U8"', shape: str = "[8]", offsets: str = "[0,8]", more: str = "") -> str:
    """One entry of a header, as text, so that anything can be wrong with it."""
    return f'"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}{more}}}'


def span(name: str, begin: int, end: int) -> str:
    """An entry of bytes."""
    return entry(name, shape=f"[{max(end - begin, 0)}]", offsets=f"[{begin},{end}]")


def header(*entries: str) -> str:
    """Entries in braces."""
    return "{" + ",".join(entries) + "}"


def shard(*tensors: str) -> bytes:
    """A good shard of one-byte tensors."""
    return framed(header(*(span(t, i, i + 1) for i, t in enumerate(tensors))), len(tensors))


def single(name: str, rule: str, content: bytes, tensor: str | None = None, code="bad_header", reference=False) -> Case:
    """A case of one file."""

    def build(root: Path) -> Path:
        path = root / f"{name}.safetensors"
        path.write_bytes(content)
        return path

    return Case(name, rule, build, code, None, tensor, reference)


def folder(name: str, rule: str, files: dict[str, bytes | str], code="bad_index", file=INDEX, tensor=None) -> Case:
    """A case of a folder of files."""

    def build(root: Path) -> Path:
        at = root / name
        at.mkdir()
        for file_name, content in files.items():
            (at / file_name).write_bytes(content.encode() if isinstance(content, str) else content)
        return at

    return Case(name, rule, build, code, file, tensor)


def other_formats() -> Iterator[Case]:
    """Files that people hand in by mistake."""
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("archive/data.pkl", pickle.dumps({"a": 1}))
        made.writestr("archive/data/0", b"\0" * 16)
    rule = "the file is a safetensors file"
    kinds = {
        "empty-file": b"",
        "torch-archive": archive.getvalue(),
        "zip-archive": b"PK\x03\x04\x14\0\0\0\x08\0" + b"\0" * 16 + b"readme.txt",
        **{f"pickle-protocol-{p}": pickle.dumps({"weight": list(range(99))}, protocol=p) for p in (2, 3, 4, 5)},
        "gguf": b"GGUF\x03\0\0\0" + b"\x10\0\0\0\0\0\0\0" * 3,
        "gguf-magic": b"GGUF",
        "gzip": b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + b"abc" * 9,
        "zstd": b"\x28\xb5\x2f\xfd" + b"\x07" * 32,
        "html": b"<!DOCTYPE html>\n<html><head><title>404</title></head></html>",
        "html-after-blanks": b"\n\n  <html lang='en'><body>Sign in</body></html>",
        "lfs-pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n",
        "json-text": b'{"error":"Entry not found","code":404}',
        "plain-text": b"Entry not found",
        "numpy": b"\x93NUMPY\x01\0v\0{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }",
        "hdf5": b"\x89HDF\r\n\x1a\n" + b"\0\x08" * 16,
    }
    for name, content in kinds.items():
        yield single(name, rule, content, code="wrong_format")


def lengths() -> Iterator[Case]:
    """The first eight bytes."""
    good = header(span("a", 0, 8))
    limit = "the header length is at most 100 000 000 and fits the file"
    yield single("three-bytes", "8 bytes of header length", b"\x01\x02\x03")
    yield single("length-alone", limit, framed("", length=2))
    yield single("length-zero", limit, framed("", 16, length=0))
    yield single("length-over-limit", limit, framed("{}", length=100_000_001))
    yield single("length-all-ones", limit, framed("{}", length=2**64 - 1))
    yield single("length-sign-bit", limit, framed("{}", length=2**63))
    yield single("length-beyond-file", limit, framed(good, 8, length=len(good) + 9))
    yield single("length-that-cuts", "the header is one JSON object", framed(good, 8, length=len(good) - 1))
    yield single("length-into-data", "the header is one JSON object", framed(good, 8, length=len(good) + 1))


def texts() -> Iterator[Case]:
    """The header as text and as JSON."""
    utf8 = "the header is UTF-8"
    yield single("utf8-invalid", utf8, framed(b'{"\xff":1}'))
    yield single("utf8-overlong", utf8, framed(b'{"\xc0\xaf":1}'))
    yield single("utf8-surrogate", utf8, framed(b'{"\xed\xa0\x80":1}'))
    yield single("utf8-cut", utf8, framed(b'{"\xe2\x82'))
    rule = "the header is JSON, as serde_json takes it"
    e = span("a", 0, 8)
    odd = {
        "byte-order-mark": "\ufeff" + header(e),
        "nul-padding": header(e) + "\0\0",
        "text-after": header(e) + " {}",
        "comment": header(e)[:-1] + "/* */}",
        "single-quotes": "{'a':1}",
        "a-list": "[]",
        "a-number": "1234",
        "a-string": '"a"',
        "null": "null",
        "blank": "      ",
        "trailing-comma": "{" + e + ",}",
        "lone-surrogate": '{"\\ud800":1}',
        "raw-control-character": '{"\x01":1}',
        "bad-escape": '{"\\x61":1}',
        "no-colon": '{"a" 1}',
        "capital-true": '{"a":True}',
    }
    within = {"trailing-comma": None, "no-colon": "a", "capital-true": "a", "comment": None}
    for name, text in odd.items():
        yield single(f"json-{name}", rule, framed(text, 8), within.get(name))
    in_a = {
        "nan": entry(more=',"x":NaN'),
        "infinity": entry(more=',"x":Infinity'),
        "huge-number": entry(more=',"x":1e999'),
        "leading-zero": entry(shape="[08]"),
        "hex": entry(shape="[0x8]"),
        "plus": entry(shape="[+8]"),
        "unterminated": '"a":{"dtype":"U8"',
        "depth-bomb": '"a":{"x":' + "[" * 200,
        "object-depth-bomb": '"a":' * 1 + '{"a":' * 100_000,
    }
    for name, text in in_a.items():
        yield single(f"json-{name}", rule, framed("{" + text + "}", 8), "a")


def fields() -> Iterator[Case]:
    """What one entry can get wrong."""
    is_object = "an entry is an object with dtype, shape and data_offsets"
    for name, text in {"null": "null", "number": "8", "string": '"U8"', "true": "true", "empty": "{}"}.items():
        yield single(f"entry-{name}", is_object, framed('{"a":' + text + "}", 8), "a")
    yield single("entry-list", is_object, framed('{"a":["U8",[8],[0,8]]}', 8), "a", reference=True)
    for missing in ("dtype", "shape", "data_offsets"):
        kept = {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}
        del kept[missing]
        yield single(f"missing-{missing}", is_object, framed(json.dumps({"a": kept}), 8), "a")
    known = "dtype is one of 22 names"
    for name, dtype in {
        "unknown": '"F31"', "lower-case": '"u8"', "empty": '""', "null": "null", "number": "8", "list": '["U8"]',
        "blank": '"U8 "', "numpy-name": '"float32"', "terminal-codes": '"\\u001b[31mU8"',
    }.items():  # fmt: skip
        yield single(f"dtype-{name}", known, framed(header(entry(dtype=dtype)), 8), "a")
    yield single("dtype-object", known, framed(header(entry(dtype='{"U8":null}')), 8), "a", reference=True)
    natural = "shape is a list of integers from 0 to 2^64-1"
    for name, shape in {
        "number": "8", "null": "null", "object": '{"0":8}', "string": '"8"', "negative": "[-8]", "minus-zero": "[-0]",
        "fraction": "[8.0]", "exponent": "[8e0]", "of-strings": '["8"]', "of-null": "[null]", "nested": "[[8]]",
        "over-64-bits": "[18446744073709551616]",
    }.items():  # fmt: skip
        yield single(f"shape-{name}", natural, framed(header(entry(shape=shape)), 8), "a")
    pair = "data_offsets is a list of two integers from 0 to 2^64-1"
    for name, offsets in {
        "number": "8", "null": "null", "object": '{"0":0,"1":8}', "empty": "[]", "one": "[8]", "three": "[0,8,8]",
        "negative": "[-8,0]", "fraction": "[0,8.0]", "string": '["0","8"]', "over-64-bits": "[0,18446744073709551624]",
    }.items():  # fmt: skip
        yield single(f"offsets-{name}", pair, framed(header(entry(offsets=offsets)), 8), "a")
    yield single("offsets-reversed", "begin is not after end", framed(header(entry(offsets="[8,0]")), 8), "a")


def sizes() -> Iterator[Case]:
    """Shapes against ranges, for every dtype."""
    rule = "end - begin is the product of the shape times the size of the dtype"
    for dtype, bits in DTYPES.items():
        # Eight elements fill whole bytes in every dtype; nine of the small ones do not.
        e = entry(dtype=f'"{dtype}"', shape="[8]", offsets=f"[0,{bits + 1}]")
        yield single(f"size-{dtype}-one-more", rule, framed(header(e), bits + 1), "a")
        e = entry(dtype=f'"{dtype}"', shape="[8]", offsets=f"[0,{bits - 1}]")
        yield single(f"size-{dtype}-one-less", rule, framed(header(e), bits - 1), "a")
    whole = "a tensor fills whole bytes"
    for dtype, shape in (("F4", "[15]"), ("F6_E2M3", "[9]"), ("F6_E3M2", "[3,3]"), ("F4", "[]")):
        name = f"bits-{dtype}-{shape}".replace("[", "").replace("]", "").replace(",", "x")
        yield single(name, whole, framed(header(entry(dtype=f'"{dtype}"', shape=shape)), 8), "a")
    fits = "the size of a tensor fits 64 bits, multiplied from left to right"
    for name, dtype, shape in (
        ("product", "U8", "[4294967296,4294967296]"),
        ("wraps-to-zero", "U8", "[9223372036854775808,2,8]"),
        ("bits", "F64", "[2305843009213693953]"),
        ("before-a-zero", "U8", "[1099511627776,1099511627776,0]"),
        ("all-ones", "U8", "[18446744073709551615,18446744073709551615]"),
    ):
        e = entry(dtype=f'"{dtype}"', shape=shape, offsets="[0,0]")
        yield single(f"overflow-{name}", fits, framed(header(e)), "a")
    rank = f"[{','.join(['1'] * 64)},8]"
    yield single("rank-65", "at most 64 dimensions", framed(header(entry(shape=rank)), 8), "a", reference=True)


def layouts() -> Iterator[Case]:
    """How the tensors lie in the file."""
    rule = "tensors cover the data without hole or overlap"
    for name, entries, data, tensor in (
        ("hole-before", [span("a", 4, 8)], 8, "a"),
        ("hole-between", [span("b", 6, 8), span("a", 0, 4)], 8, "b"),
        ("hole-of-one", [span("a", 0, 3), span("b", 4, 8)], 8, "b"),
        ("overlap", [span("a", 0, 6), span("b", 4, 8)], 8, "b"),
        ("alias", [span("a", 0, 8), span("b", 0, 8)], 8, "b"),
        ("inside", [span("a", 0, 8), span("b", 2, 4)], 8, "b"),
        ("empty-inside", [span("a", 0, 8), span("b", 4, 4)], 8, "b"),
        ("empty-beyond", [span("a", 0, 8), span("b", 9, 9)], 8, "b"),
        ("far-away", [entry(shape="[0]", offsets=f"[{2**64 - 1},{2**64 - 1}]")], 8, "a"),
    ):
        yield single(f"layout-{name}", rule, framed(header(*entries), data), tensor)
    rule = "the last tensor ends with the file"
    for name, entries, data, tensor in (
        ("short-by-one", [span("a", 0, 8)], 7, "a"),
        ("short-by-three", [span("a", 0, 4), span("b", 4, 8)], 5, "b"),
        ("no-data", [span("a", 0, 8)], 0, "a"),
        ("long-by-one", [span("a", 0, 8)], 9, None),
        ("long-without-tensors", [], 1, None),
        ("polyglot", [span("a", 0, 8)], 800, None),
        ("huge", [span("a", 0, 2**61 - 1)], 8, "a"),
    ):
        yield single(f"end-{name}", rule, framed(header(*entries), data), tensor)
    bomb = [span(f"t{i}", 0, 1 << 20) for i in range(1000)]
    yield single("layout-overlap-bomb", "each byte has one owner", framed(header(*bomb), 1 << 20), "t1")


def duplicates() -> Iterator[Case]:
    """Keys that are there twice: which of the two counts differs between readers."""
    rule = "keys are unique"
    twice = {
        "name": (header(span("a", 0, 8), span("a", 0, 8)), "a"),
        "name-escaped": (header(span("a", 0, 8), span("\\u0061", 0, 8)), "a"),
        "unknown-field": (header(entry(more=',"x":1,"x":1')), "a"),
        "deep": (header(entry(more=',"x":[{"y":1,"y":1}]')), "a"),
        "metadata-key": (header('"__metadata__":{"k":"1","k":"2"}', span("a", 0, 8)), None),
        "metadata-key-escaped": (header('"__metadata__":{"k":"1","\\u006b":"2"}', span("a", 0, 8)), None),
    }
    for name, (text, tensor) in twice.items():
        yield single(f"twice-{name}", rule, framed(text, 8), tensor, reference=True)
    both = {
        "name-apart": (header(span("a", 0, 4), span("a", 4, 8)), "a"),
        "dtype": (header(entry(more=',"dtype":"U8"')), "a"),
        "shape": (header(entry(more=',"shape":[8]')), "a"),
        "shape-escaped": (header(entry(more=',"sh\\u0061pe":[8]')), "a"),
        "offsets": (header(entry(more=',"data_offsets":[0,8]')), "a"),
        "metadata": (header('"__metadata__":{}', '"__metadata__":{}', span("a", 0, 8)), None),
    }
    for name, (text, tensor) in both.items():
        yield single(f"twice-{name}", rule, framed(text, 8), tensor)


def metadata() -> Iterator[Case]:
    """`__metadata__`."""
    rule = "__metadata__ holds strings by strings"
    for name, value in {
        "list": "[]", "string": '"pt"', "number": "1", "value-number": '{"k":1}', "value-null": '{"k":null}',
        "value-object": '{"k":{}}', "value-list": '{"k":[]}',
        "a-tensor": '{"dtype":"U8","shape":[8],"data_offsets":[0,8]}',
    }.items():  # fmt: skip
        yield single(f"metadata-{name}", rule, framed(header(f'"__metadata__":{value}', span("a", 0, 8)), 8))


def names() -> Iterator[Case]:
    """Hostile names in files that break another rule: they must come out escaped and cut."""
    rule = "names are shown escaped and cut"
    for name, tensor in {
        "escape-codes": "\x1b]0;title\x07\x1b[31mred", "newlines": "a\r\nerror: all is well",
        "right-to-left": "\u202egnp.exe",
        "nul": "a\0b", "path": "../../etc/passwd", "html": "<script>alert(1)</script>", "empty": "", "long": "n" * 5000,
        "zero-width": "a\u200bb", "rich-markup": "[bold red]x[/bold red]",
    }.items():  # fmt: skip
        text = json.dumps({tensor: {"dtype": "U8", "shape": [9], "data_offsets": [0, 8]}})
        yield single(f"name-{name}", rule, framed(text, 8), tensor)


def indexes() -> Iterator[Case]:
    """Indexes, which the reference does not read."""
    good = {ONE: shard("a"), TWO: shard("b", "c")}
    plain = "a shard's name is one plain file name that ends in .safetensors"
    for name, value in {
        "parent": "../other/model.safetensors", "absolute": "/etc/model.safetensors", "below": "sub/model.safetensors",
        "backslash": "..\\model.safetensors", "nul": "a\0.safetensors", "escape": "a\x1b.safetensors", "empty": "",
        "dot": ".", "dots": "..", "other-ending": "pytorch_model.bin", "long": "n" * 245 + ".safetensors",
        "newline": "a\n.safetensors", "trailing-slash": "model.safetensors/", "url": "https://x/model.safetensors",
    }.items():  # fmt: skip
        text = json.dumps({"weight_map": {"a": value, "b": TWO, "c": TWO}})
        yield folder(f"index-shard-{name}", plain, {**good, INDEX: text}, tensor="a")
    form = "an index is an object with weight_map, tensors by shards"
    pair = f'"a":"{ONE}"'
    for name, text in {
        "empty-file": "", "list": "[]", "null": "null", "no-map": "{}", "empty-map": '{"weight_map":{}}',
        "map-null": '{"weight_map":null}', "map-list": '{"weight_map":[]}', "metadata-number": '{"metadata":3}',
        "text-after": f'{{"weight_map":{{{pair}}}}} x', "map-twice": f'{{"weight_map":{{{pair}}},"weight_map":{{}}}}',
    }.items():  # fmt: skip
        yield folder(f"index-{name}", form, {**good, INDEX: text})
    yield folder("index-utf8", form, {**good, INDEX: b'{"\xff":1}'})
    yield folder("index-value-number", form, {**good, INDEX: '{"weight_map":{"a":1}}'}, tensor="a")
    yield folder("index-value-null", form, {**good, INDEX: '{"weight_map":{"a":null}}'}, tensor="a")
    unique = "keys are unique"
    yield folder("index-twice", unique, {**good, INDEX: f'{{"weight_map":{{{pair},{pair}}}}}'}, tensor="a")
    text = f'{{"weight_map":{{{pair},"\\u0061":"{TWO}"}}}}'
    yield folder("index-twice-escaped", unique, {**good, INDEX: text}, tensor="a")
    agree = "index and shards agree both ways"

    def mapped(**weight_map: str) -> str:
        return json.dumps({"weight_map": weight_map})

    yield folder("index-tensor-missing", agree, {**good, INDEX: mapped(a=ONE, d=TWO)}, tensor="d")
    yield folder("index-tensor-elsewhere", agree, {**good, INDEX: mapped(a=ONE, b=ONE, c=TWO)}, tensor="b")
    yield folder("index-shard-missing", agree, {**good, INDEX: mapped(a=ONE, d="model-3.safetensors")}, tensor="d")
    both = {ONE: shard("a", "b"), TWO: shard("b")}
    yield folder("index-tensor-in-two", agree, {**both, INDEX: mapped(a=ONE, b=TWO)}, tensor="b")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    files = {ONE: shard("a"), TWO: lfs, INDEX: mapped(a=ONE, b=TWO)}
    yield folder("shard-lfs-pointer", "the file is a safetensors file", files, "wrong_format", TWO)
    files = {ONE: shard("a"), TWO: framed(header(span("b", 0, 8)), 5), INDEX: mapped(a=ONE, b=TWO)}
    yield folder("shard-short", "the last tensor ends with the file", files, "bad_header", TWO, "b")
    one_of = "a folder holds one model"
    files = {SINGLE: shard("a"), **good, INDEX: mapped(a=ONE)}
    yield folder("folder-both", one_of, files, "not_a_checkpoint", "folder-both")
    yield folder("folder-empty", one_of, {}, "not_a_checkpoint", "folder-empty")
    yield folder("folder-no-index", one_of, good, "not_a_checkpoint", "folder-no-index")
    yield folder("folder-one-of-two", one_of, {ONE: shard("a")}, "not_a_checkpoint", "folder-one-of-two")
    files = {"pytorch_model.bin": b"\x80\x02."}
    yield folder("folder-pickle", "no pickle is ever read", files, "not_a_checkpoint", "folder-pickle")
    data = "config.json is data: a JSON object"
    for name, text in {"empty": "", "list": "[]", "code": "import os", "cut": "{", "latin": b"\xff"}.items():
        yield folder(f"config-{name}", data, {SINGLE: shard("a"), "config.json": text}, "bad_config", "config.json")


def kinds() -> Iterator[Case]:
    """What is at a path instead of a file."""
    rule = "regular files only, without ever waiting"

    def fifo(root: Path) -> Path:
        os.mkfifo(path := root / "fifo.safetensors")
        return path

    def linked_fifo(root: Path) -> Path:
        os.mkfifo(root / "pipe")
        (path := root / "linked-fifo.safetensors").symlink_to("pipe")
        return path

    def shard_fifo(root: Path) -> Path:
        (at := root / "shard-fifo").mkdir()
        os.mkfifo(at / ONE)
        (at / INDEX).write_text(json.dumps({"weight_map": {"a": ONE}}))
        return at

    def index_fifo(root: Path) -> Path:
        (at := root / "index-fifo").mkdir()
        os.mkfifo(at / INDEX)
        return at

    def config_fifo(root: Path) -> Path:
        (at := root / "config-fifo").mkdir()
        (at / SINGLE).write_bytes(shard("a"))
        os.mkfifo(at / "config.json")
        return at

    def bound(root: Path) -> Path:
        # A socket's path may have 107 bytes, fewer than a test's folder; a relative one is short.
        before = Path.cwd()
        os.chdir(root)
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("socket.safetensors")
        finally:
            os.chdir(before)
        return root / "socket.safetensors"

    def loop(root: Path) -> Path:
        (path := root / "loop.safetensors").symlink_to("loop.safetensors")
        return path

    def dangling(root: Path) -> Path:
        (path := root / "dangling.safetensors").symlink_to("blobs/gone")
        return path

    def device(root: Path) -> Path:
        (path := root / "device.safetensors").symlink_to("/dev/zero")
        return path

    def inside_a_file(root: Path) -> Path:
        (root / "file").write_bytes(b"x")
        return root / "file" / "model.safetensors"

    def folder_as_shard(root: Path) -> Path:
        (root / "folder-as-shard" / SINGLE).mkdir(parents=True)
        return root / "folder-as-shard"

    def sparse_header(root: Path) -> Path:
        (path := root / "sparse-header.safetensors").write_bytes(struct.pack("<Q", 99_999_999))
        with path.open("r+b") as file:
            file.truncate(8 + 99_999_999)
        return path

    yield Case("fifo", rule, fifo, "not_a_checkpoint")
    yield Case("fifo-behind-a-link", rule, linked_fifo, "not_a_checkpoint", "linked-fifo.safetensors")
    yield Case("fifo-as-shard", rule, shard_fifo, "bad_index", INDEX, "a")
    yield Case("fifo-as-index", rule, index_fifo, "bad_index", INDEX)
    yield Case("fifo-as-config", rule, config_fifo, "bad_config", "config.json")
    yield Case("socket", rule, bound, "not_a_checkpoint")
    yield Case("symlink-loop", rule, loop, "not_a_checkpoint")
    yield Case("dangling-link", rule, dangling, "not_a_checkpoint")
    yield Case("device", rule, device, "not_a_checkpoint")
    yield Case("nothing-there", rule, lambda root: root / "absent", "model_not_found")
    yield Case("below-a-file", rule, inside_a_file, "model_not_found")
    yield Case("folder-as-shard", rule, folder_as_shard, "not_a_checkpoint", SINGLE)
    yield Case("header-of-zeros", "the header is one JSON object", sparse_header, "bad_header")


def odd_but_good() -> Iterator[Case]:
    """What opens, so that strictness does not grow unseen: the reference opens it too."""
    e = span("a", 0, 8)
    empty = '"z":{"dtype":"U8","shape":[0,4611686018427387904,3],"data_offsets":[0,0]}'
    odd = '"b":{"dtype":"F32","shape":[1],"data_offsets":[3,7]}'
    rank = f"[{','.join(['1'] * 63)},8]"
    odd_names = framed(header(span("", 0, 1), span("../x", 1, 2), span("\\u0000", 2, 3)), 3)
    for name, rule, content in (
        ("no-tensor", "a file may hold nothing", framed("{}")),
        ("space-padding", "a header may end in spaces", framed(header(e) + "   ", 8)),
        ("newline-padding", "odd padding is a warning", framed(header(e) + "\n\t\r", 8)),
        ("leading-space", "a header that begins with blanks is a warning", framed(" " + header(e), 8)),
        ("metadata-null", "null for __metadata__ is a warning", framed(header('"__metadata__":null', e), 8)),
        ("unknown-field", "more fields are a warning", framed(header(entry(more=',"x":{"y":[1,null]}')), 8)),
        ("scalar", "a scalar has no dimensions", framed(header(entry(dtype='"F64"', shape="[]")), 8)),
        ("rank-64", "at most 64 dimensions", framed(header(entry(shape=rank)), 8)),
        ("empty-tensors", "empty tensors may share an offset", framed(header(span("z", 8, 8), e, span("y", 0, 0)), 8)),
        ("absurd-empty", "an absurd empty tensor is a warning", framed(header(empty, e), 8)),
        ("unaligned", "data need not be aligned", framed(header(span("a", 0, 3), odd), 7)),
        ("four-bits", "F4 counts elements", framed(header(entry(dtype='"F4"', shape="[16]")), 8)),
        ("odd-names", "any string is a name", odd_names),
    ):
        yield single(f"good-{name}", rule, content, code=None, reference=True)


FAMILIES = (
    other_formats, lengths, texts, fields, sizes, layouts, duplicates, metadata, names, indexes, kinds, odd_but_good,
)  # fmt: skip
CASES = [case for family in FAMILIES for case in family()]


def main() -> None:
    """Writes every case into a folder of its own."""
    root = Path(sys.argv[1])
    for case in CASES:
        (at := root / case.name).mkdir(parents=True)
        case.build(at)
    print(f"{len(CASES)} cases in {root}")


if __name__ == "__main__":
    main()
