"""What is looked at while other processes write, rename and delete."""

from pathlib import Path

from vsvi_assets.files import remove_abandoned_parts
from vsvi_assets.photographs.inventory import file_sizes


def test_a_file_that_is_gone_once_it_is_listed_disturbs_nobody(tmp_path: Path) -> None:
    """As one that another process renames between the listing of its folder and a look at it."""
    (tmp_path / "1.jpg").write_bytes(b"whole")
    for name in ("2.jpg", ".3.jpg.0123.part"):
        (tmp_path / name).symlink_to("nowhere")
    assert file_sizes(tmp_path) == {"1.jpg": 5}
    assert remove_abandoned_parts(tmp_path) == 0
