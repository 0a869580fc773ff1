"""Buckets of sequences: partitions of cities with more sequences than Dagster keeps keys.

A bucket holds the sequences whose hash lies in its part of all hashes, so the hash alone has to
be kept: it stays right when a city file changes its number of buckets.
"""

import zlib

HASHES = 2**32


def sequence_hash(sequence_id: str) -> int:
    """Return the CRC-32 of a sequence's id, at least 0 and less than `HASHES`."""
    return zlib.crc32(sequence_id.encode())


def bucket_keys(count: int) -> list[str]:
    """Return the partition keys of so many buckets, in their order."""
    width = len(str(count - 1))
    return [f"bucket-{number:0{width}}" for number in range(count)]


def bucket_of(sequence_id: str, count: int) -> str:
    """Return the key of the bucket that holds a sequence, of so many buckets."""
    width = len(str(count - 1))
    return f"bucket-{sequence_hash(sequence_id) * count // HASHES:0{width}}"


def hashes_of(key: str, count: int) -> range:
    """Return the hashes of the sequences that a bucket holds, of so many buckets."""
    number = int(key.removeprefix("bucket-"))
    first, after = (-(-each * HASHES // count) for each in (number, number + 1))
    return range(first, after)
