"""Pictures to look at: spread evenly, readable ones."""

from pathlib import Path

from PIL import Image

from tools.running.pictures import choose_pictures


def test_pictures_are_spread_and_readable(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    assert choose_pictures(folder, 3) == []
    folder.mkdir()
    assert choose_pictures(folder, 3) == []
    for number in range(9):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    assert [file.name for file in choose_pictures(folder, 3)] == ["0.png", "3.png", "6.png"]
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    for name in ("6.png", "7.png", "8.png"):
        (folder / name).write_bytes(b"no image")
    assert [file.name for file in choose_pictures(folder, 3)] == ["0.png", "4.png"]
    assert len(choose_pictures(folder, 20)) == 5
