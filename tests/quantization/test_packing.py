"""Packing: what goes in comes out, at the width promised, in the order the format says."""

import numpy as np
import pytest

from qdrop.quantization import packing
from qdrop.quantization.packing import pack, packed_size, unpack

BITS = range(2, 9)


def values(count, bit, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bit, count, dtype=np.uint8)


@pytest.mark.parametrize("bit", BITS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 8, 9, 31, 63, 64, 65, 1001])
def test_what_goes_in_comes_out_and_takes_no_more_than_its_bits(bit, count):
    x = values(count, bit, seed=count)
    packed = pack(x, bit)
    assert packed.dtype == np.uint8 and packed.size == packed_size(count, bit) == -(-count * bit // 8)
    assert np.array_equal(unpack(packed, bit, count), x)


@pytest.mark.parametrize("bit", BITS)
def test_the_ends_of_the_range(bit):
    x = np.array([0, 2**bit - 1] * 5, np.uint8)
    assert np.array_equal(unpack(pack(x, bit), bit, 10), x)


@pytest.mark.parametrize("bit", BITS)
def test_the_stream_is_one_long_number_lowest_bit_first(bit):
    x = values(37, bit)
    number = sum(int(value) << (place * bit) for place, value in enumerate(x))
    assert int.from_bytes(pack(x, bit).tobytes(), "little") == number


def test_the_example_of_the_format():
    assert pack(np.array([5, 1, 6], np.uint8), 3).tolist() == [0x8D, 0x01]


def test_memory_order_is_that_of_c_whatever_the_strides():
    x = values(24, 3).reshape(4, 6)
    assert np.array_equal(pack(x.T, 3), pack(np.ascontiguousarray(x.T), 3))
    assert np.array_equal(unpack(pack(x, 3), 3, 24).reshape(4, 6), x)


@pytest.mark.parametrize("bit", [3, 5, 8])
def test_long_tensors_go_in_chunks_without_a_seam(bit, monkeypatch):
    x = values(1003, bit)
    whole = pack(x, bit)
    monkeypatch.setattr(packing, "_CHUNK", 16)
    assert np.array_equal(pack(x, bit), whole)
    assert np.array_equal(unpack(whole, bit, 1003), x)


def test_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="the value 4 does not fit into 2 bits"):
        pack(np.array([1, 4], np.uint8), 2)
    with pytest.raises(ValueError, match="bit is 9"):
        pack(values(3, 2), 9)
    with pytest.raises(ValueError, match="5 integers of 3 bits take 2 bytes, found 3"):
        unpack(np.zeros(3, np.uint8), 3, 5)
    with pytest.raises(ValueError, match="0x80, has a bit set behind the last of 5 integers"):
        unpack(np.array([0, 0x80], np.uint8), 3, 5)
