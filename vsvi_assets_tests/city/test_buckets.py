"""Each sequence is in one bucket, whichever way one asks."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vsvi_assets.city.buckets import HASHES, bucket_keys, bucket_of, hashes_of, sequence_hash

COUNTS = st.integers(1, 10_000)


@given(COUNTS, st.text(min_size=1))
def test_a_sequence_is_in_the_bucket_whose_hashes_have_its_own(count: int, sequence: str) -> None:
    key = bucket_of(sequence, count)
    assert key in bucket_keys(count)
    assert sequence_hash(sequence) in hashes_of(key, count)


@given(COUNTS)
def test_the_buckets_share_all_hashes_out(count: int) -> None:
    keys = bucket_keys(count)
    assert keys == sorted(set(keys))
    assert len(keys) == count
    parts = [hashes_of(key, count) for key in keys]
    assert parts[0].start == 0
    assert parts[-1].stop == HASHES
    assert all(before.stop == after.start for before, after in pairwise(parts))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
