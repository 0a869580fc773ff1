"""A vector tile of millions of images, put together by NumPy in seconds.

Each image has an id, a capture time and an angle of its own, as real ones have, so that its
bytes, and the memory to decode them, are those of a real tile of that size. The densest that is
known, in Chicago, has 2.1 million.
"""

import numpy as np
from numpy.typing import NDArray

Column = int | NDArray[np.uint8]

KEYS = ("id", "captured_at", "compass_angle", "sequence_id", "creator_id", "is_pano")
FIRST_ID = 1_000_000_000_000_000
FIRST_TIME = 1_500_000_000_000
CREATORS, SEQUENCES = 126, 16_256
# Values of the layer, in such an order that numbers of one kind take equally many bytes: creators,
# no and yes, sequences, one that nobody uses, and then three for each image.
_FALSE, _FIRST_SEQUENCE, _FIRST_OWN = CREATORS, CREATORS + 2, CREATORS + 2 + SEQUENCES + 1
_WITH_SHORT_NUMBERS = (2**21 - _FIRST_OWN) // 3


def large_tile(images: int) -> bytes:
    """Encode a tile with so many images, in up to 16,256 sequences."""
    numbers = np.arange(images)
    shared = [
        *(b"\x20" + _varint(100_000_000_000_001 + number) for number in range(CREATORS)),
        b"\x38\0",
        b"\x38\1",
        *(_field(1, f"sequence_{number:05}".encode()) for number in range(SEQUENCES)),
        b"\x38\0",
    ]
    layer = [
        _field(1, b"image"),
        _features(numbers[:_WITH_SHORT_NUMBERS], width=3),
        _features(numbers[_WITH_SHORT_NUMBERS:], width=4),
        *(_field(3, key.encode()) for key in KEYS),
        *(_field(4, value) for value in shared),
        _own_values(numbers),
        b"\x28\x80\x20",  # extent 4096
        b"\x78\2",  # version
    ]
    return _field(3, b"".join(layer))


def _features(numbers: NDArray[np.int64], width: int) -> bytes:
    """Encode images whose own values have numbers of `width` bytes."""
    own = [_varints(_FIRST_OWN + 3 * numbers + place, width) for place in range(3)]
    sequences = _varints(_FIRST_SEQUENCE + numbers // 200 % SEQUENCES, 2)
    creators = _varints(numbers // 200 % CREATORS, 1)
    panoramas = _varints(_FALSE + (numbers // 200 % 5 == 4), 1)
    # Zigzag numbers from 128 to 8190 are cells from 64 to 4095.
    x, y = (_varints(2 * (64 + numbers * step % 4032), 2) for step in (7, 31))
    tags: list[Column] = [0, own[0], 1, own[1], 2, own[2], 3, sequences, 4, creators, 5, panoramas]
    feature: list[Column] = [0x12, 3 * width + 10, *tags, 0x18, 1, 0x22, 5, 9, x, y]
    return _rows(len(numbers), [0x12, 3 * width + 21, *feature])


def _own_values(numbers: NDArray[np.int64]) -> bytes:
    ids = _varints(FIRST_ID + 1000 * numbers, 8)
    times = _varints(FIRST_TIME + 1000 * numbers, 6)
    angles = (numbers * 0.000_1 % 360).astype("<f8").view(np.uint8).reshape(-1, 8)
    parts: list[Column] = [0x22, 9, 0x20, ids, 0x22, 7, 0x20, times, 0x22, 9, 0x19, angles]
    return _rows(len(numbers), parts)


def _rows(count: int, parts: list[Column]) -> bytes:
    """Return the bytes of as many rows, made of columns and of single bytes that all share."""
    columns = [
        np.full((count, 1), part, np.uint8) if isinstance(part, int) else part for part in parts
    ]
    return np.hstack(columns).tobytes()


def _varints(values: NDArray[np.int64], width: int) -> NDArray[np.uint8]:
    """Return numbers that take `width` bytes each as protocol buffers write them."""
    sevens = (values[:, None] >> 7 * np.arange(width) & 0x7F).astype(np.uint8)
    sevens[:, :-1] |= 0x80
    return sevens


def _varint(value: int) -> bytes:
    width = max(1, -(-value.bit_length() // 7))
    return _varints(np.array([value]), width).tobytes()


def _field(number: int, content: bytes) -> bytes:
    """Return a field of bytes with its number and length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content
