"""DARE's random mask: Philox4x32-10 as a function of (seed, tensor name, expert, element).

Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC11; known answers from the
`kat_vectors` file of Random123. The definition of the mask:

    material = BLAKE3(b"rlmerge.mask.v2\\0" + u64le(seed) + u32le(expert) + utf8(name)), eight u32le
    stream 0: key = material[0:2], counter words 2, 3 = material[2:4];  stream 1: the same with material[4:8]
    a block has eight pieces of 16 bits: the lower and the upper half of output word 0, of word 1, ...
    element i of the flat tensor: block = 8 * (i // 64) + i % 32 // 4, counter words 0, 1 = low, high half of block;
    its bits in a stream: piece 4 * (i % 64 // 32) + i % 4 of that block
    u = 2**16 * (bits of stream 0) + (bits of stream 1);  the element is kept when u < floor(density * 2**32 + 1/2)
"""

import struct

import numpy as np
from blake3 import blake3

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)


def philox4x32_10(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Ten rounds over `counter`, shape (..., 4) of u32."""
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & LOW,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & LOW,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def halves(key: tuple[int, int], high: tuple[int, int], n: int) -> np.ndarray:
    """The 16 bits of each of `n` elements in one stream."""
    element = np.arange(n, dtype=np.uint64)
    group, rest = element // np.uint64(64), (element % np.uint64(64)).astype(np.int64)
    block = np.uint64(8) * group + (rest % 32 // 4).astype(np.uint64)
    counter = np.empty((n, 4), np.uint32)
    counter[:, 0], counter[:, 1] = block & LOW, block >> np.uint64(32)
    counter[:, 2], counter[:, 3] = high
    output = philox4x32_10(counter, key)
    pieces = np.stack([output & np.uint32(0xFFFF), output >> np.uint32(16)], axis=-1).reshape(n, 8)
    return np.take_along_axis(pieces, (rest // 32 * 4 + rest % 4)[:, None], axis=1)[:, 0]


def words(seed: int, name: str, expert: int, n: int) -> np.ndarray:
    """The uniform u32 of each of `n` elements."""
    digest = blake3(b"rlmerge.mask.v2\0" + struct.pack("<QI", seed, expert) + name.encode()).digest()
    m = struct.unpack("<8I", digest)
    upper, lower = halves(m[0:2], m[2:4], n), halves(m[4:6], m[6:8], n)
    return upper.astype(np.uint32) << np.uint32(16) | lower.astype(np.uint32)


def keep(seed: int, name: str, expert: int, shape: tuple[int, ...], density: float) -> np.ndarray:
    """The mask of one tensor of one expert."""
    threshold = int(np.floor(density * 2.0**32 + 0.5))
    u = words(seed, name, expert, int(np.prod(shape, dtype=np.int64)))
    return (u.astype(np.uint64) < np.uint64(threshold)).reshape(shape)
