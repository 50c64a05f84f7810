"""Integers of 2 to 8 bits at their real width: value after value, lowest bit first, no padding but in the last byte.

With 3 bits, the values 5, 1, 6 (101, 001, 110) are the bytes 0b10001101 0b00000001: read each byte from its lowest bit
up, and every value from its lowest bit up.
"""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 1 << 20
"""Values at a time, a multiple of 8 so that each chunk ends on a whole byte: the bits take a byte each on the way."""


def packed_size(count: int, bit: int) -> int:
    """Bytes that `count` integers of `bit` bits take.

    Raises:
        ValueError: For a width outside 1..8.
    """
    if not 1 <= bit <= 8:
        raise ValueError(f"bit is {bit}; integers of 1 to 8 bits are packed")
    return -(-count * bit // 8)


def pack(values: NDArray[np.uint8], bit: int) -> NDArray[np.uint8]:
    """Pack integers.

    Args:
        values: Integers 0..2^bit - 1, any shape; their order is that of memory (C order).
        bit: Width, 1 to 8.

    Returns:
        Bytes `[packed_size(values.size, bit)]`.

    Raises:
        ValueError: For a width outside 1..8, or a value that needs more bits.
    """
    size = packed_size(values.size, bit)
    if values.size and int(values.max()) >= 1 << bit:
        raise ValueError(f"the value {int(values.max())} does not fit into {bit} bits")
    flat = np.ascontiguousarray(values, dtype=np.uint8).reshape(-1, 1)
    packed = np.empty(size, np.uint8)
    for start in range(0, len(flat), _CHUNK):
        bits = np.unpackbits(flat[start : start + _CHUNK], axis=1, count=bit, bitorder="little")
        part = np.packbits(bits, bitorder="little")
        packed[start * bit // 8 :][: len(part)] = part
    return packed


def unpack(packed: NDArray[np.uint8], bit: int, count: int) -> NDArray[np.uint8]:
    """The integers that :func:`pack` packed.

    Args:
        packed: Bytes `[packed_size(count, bit)]`.
        bit: Width, 1 to 8.
        count: How many integers.

    Returns:
        Integers 0..2^bit - 1, `[count]`.

    Raises:
        ValueError: If there are more or fewer bytes than `count` integers take, or a padding bit is set.
    """
    if packed.size != packed_size(count, bit):
        raise ValueError(f"{count} integers of {bit} bits take {packed_size(count, bit)} bytes, found {packed.size}")
    spare = packed.size * 8 - count * bit
    if spare and packed[-1] >> (8 - spare):
        raise ValueError(f"the last byte, {packed[-1]:#04x}, has a bit set behind the last of {count} integers")
    values = np.empty(count, np.uint8)
    for start in range(0, count, _CHUNK):
        part = values[start : start + _CHUNK]
        bits = np.unpackbits(packed[start * bit // 8 :], count=len(part) * bit, bitorder="little")
        part[:] = np.packbits(bits.reshape(-1, bit), axis=1, bitorder="little")[:, 0]
    return values
