import json
import tarfile
from pathlib import Path

import pytest

from vsvi_assets.dataset.errors import MissingPhotographError
from vsvi_assets.dataset.shards import write_shards
from vsvi_assets_tests.dataset.parts import photograph, row, write_photographs, written_table

ROWS = [row(number) for number in range(75)]  # 25 images of two rows each


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    return write_photographs(ROWS, tmp_path / "photographs")


def samples(shard: Path) -> dict[str, dict[str, bytes]]:
    """Read a shard as WebDataset does: neighbours with the same name are one sample."""
    found: dict[str, dict[str, bytes]] = {}
    last = None
    with tarfile.open(shard) as tar:
        for member in tar:
            key, ending = member.name.split(".")
            assert key == last or key not in found, "parts of a sample lie apart"
            last = key
            content = tar.extractfile(member)
            assert content
            found.setdefault(key, {})[ending] = content.read()
    return found


def test_each_image_is_one_sample_with_all_its_points(tmp_path: Path, photographs: Path) -> None:
    shards = write_shards(written_table(ROWS, tmp_path), photographs, tmp_path / "shards", 10)
    assert [shard.name for shard in shards] == [f"shard-00000{n}.tar" for n in range(3)]
    assert [len(samples(shard)) for shard in shards] == [10, 10, 5]
    merged = {key: sample for shard in shards for key, sample in samples(shard).items()}
    assert set(merged) == {str(known["image_id"]) for known in ROWS if known["image_id"]}
    for key, sample in merged.items():
        assert sample["jpg"] == photograph(int(key))
        points = [known["street_point_id"] for known in ROWS if str(known["image_id"]) == key]
        assert [known["street_point_id"] for known in json.loads(sample["json"])] == points


def test_the_same_rows_give_the_same_bytes(tmp_path: Path, photographs: Path) -> None:
    first = write_shards(written_table(ROWS, tmp_path), photographs, tmp_path / "one", 10)
    second = write_shards(written_table(ROWS, tmp_path), photographs, tmp_path / "two", 10)
    assert [shard.read_bytes() for shard in first] == [shard.read_bytes() for shard in second]


def test_shards_of_an_earlier_and_larger_export_go(tmp_path: Path, photographs: Path) -> None:
    folder = tmp_path / "shards"
    write_shards(written_table(ROWS, tmp_path), photographs, folder, 5)
    (folder / "notes.txt").write_text("mine")
    shards = write_shards(written_table(ROWS, tmp_path), photographs, folder, 20)
    assert sorted(folder.iterdir()) == sorted([*shards, folder / "notes.txt"])


def test_a_lost_photograph_is_named(tmp_path: Path, photographs: Path) -> None:
    lost = photographs / str(ROWS[30]["file"])
    lost.unlink()
    with pytest.raises(MissingPhotographError, match=lost.name):
        write_shards(written_table(ROWS, tmp_path), photographs, tmp_path / "shards", 5)
    for shard in (tmp_path / "shards").iterdir():
        assert samples(shard)


def test_a_city_without_photographs_has_no_shards(tmp_path: Path) -> None:
    assert write_shards(written_table([row(2)], tmp_path), tmp_path, tmp_path / "shards") == []
