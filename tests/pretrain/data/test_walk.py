"""What lies below a folder: for every tool the same files are taken and the same skipped."""

from pathlib import Path

import pytest

from pretrain.data.walk import walk


def test_files_are_taken_by_name_and_the_rest_is_said(tmp_path: Path) -> None:
    for name in ("b.png", "sub/a.PNG", "sub/.hidden.png", ".ipynb_checkpoints/b.png", "x.txt", "y.heic"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")  # counted as unreadable by whoever reads it
    names, notes = walk(tmp_path, lambda name: name.lower().endswith(".png"))
    assert names == ["b.png", "gone.png", "sub/a.PNG"]
    assert notes == (
        "2 hidden entries skipped",
        "1 linked folders skipped (link)",
        "2 other files skipped (suffixes found: .heic, .txt)",
    )


def test_many_are_counted(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"a.x{number}").write_bytes(b"")
    assert walk(tmp_path, lambda name: False)[1][0].endswith("and 4 more)")


def test_a_folder_that_cannot_be_read_names_the_option(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--predict: the folder .*none.* cannot be read"):
        walk(tmp_path / "none", lambda name: True, "--predict")


def test_folders_of_runs_are_no_images(tmp_path):
    """An `--output` within the images: its drawings were trained on, and `--resume` found more images than before."""
    for name in ("a.png", "out/monitor.png", "out/predictions/a.png", "other/b.png", "odd/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "out/config.json").write_text('{"command": "pretrain"}')
    (tmp_path / "other/config.json").write_text('{"classes": []}')
    (tmp_path / "odd/config.json").write_text("no json")
    assert walk(tmp_path, lambda name: name.endswith(".png")) == (
        ["a.png", "odd/c.png", "other/b.png"],
        ("2 other files skipped (suffixes found: .json)", "1 folders of runs skipped (out)"),
    )
    assert walk(tmp_path / "out", lambda name: name.endswith(".png"))[0] == ["monitor.png", "predictions/a.png"]
