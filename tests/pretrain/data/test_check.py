"""The check before a run: the same whoever decodes, a limit that counts, a report that any name leaves whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pretrain.data import pool as pool_module
from pretrain.data.check import BadImage, check_images, enforce_bad_limit
from pretrain.data.sources import ImageList, printable
from splitmask_backbones.errors import UserError
from tests.helpers.image_files import smooth
from tests.helpers.paths import ROOT as REPO
from tools.cli import start_log

COCO_TINY = REPO.parent / "shared/data/coco_tiny/train2017"


def test_quiet_about_damage_in_every_library(tmp_path):
    """PIL warns and libtiff writes to file descriptor 2 on its own: neither may reach the screen."""
    Image.fromarray(smooth()).save(tmp_path / "x.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[20:200] = b"\xff" * 180
    (tmp_path / "x.tif").write_bytes(data)
    Image.fromarray(smooth()).save(tmp_path / "y.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    code = (
        "import sys; from pathlib import Path\n"
        "from pretrain.data.check import check_images; from pretrain.data.sources import ImageList\n"
        "bad = check_images(ImageList(Path(sys.argv[1]), ['x.tif', 'y.jpg'])); print([b.name for b in bad])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['x.tif']"
    assert done.stderr == ""


def make_folder(folder: Path, num_images: int, bad: dict[int, bytes]) -> list[str]:
    Image.fromarray(smooth()).save(folder / "good.png")
    good = (folder / "good.png").read_bytes()
    names = [f"{index:04d}.png" for index in range(num_images)]
    for index, name in enumerate(names):
        (folder / name).write_bytes(bad.get(index, good))
    return names


def test_check_is_in_order_and_independent_of_workers(tmp_path, monkeypatch):
    names = make_folder(tmp_path, 300, {3: b"", 150: b"text", 299: b""})
    names[10] = "missing.png"
    expected = [names[3], "missing.png", names[150], names[299]]
    alone = check_images(ImageList(tmp_path, names))
    assert [bad.name for bad in alone] == expected
    assert alone[0].reason == "the file is empty (0 bytes)"
    assert alone[1].reason == "No such file or directory"
    assert check_images(ImageList(tmp_path, names), workers=2) == alone
    # from the second image on in other processes
    monkeypatch.setattr(pool_module, "_TRY_SECONDS", 0.0)
    monkeypatch.setattr(pool_module, "_POOL_PAYS_SECONDS", 0.0)
    started = []
    pool = pool_module.ProcessPoolExecutor
    monkeypatch.setattr(pool_module, "ProcessPoolExecutor", lambda *a, **k: started.append(a) or pool(*a, **k))
    assert check_images(ImageList(tmp_path, names), workers=2) == alone
    assert started == [(2,)]
    assert check_images(ImageList(tmp_path, [])) == []


def test_check_workers_die_with_a_killed_parent(tmp_path):
    names = make_folder(tmp_path, 300, {})
    code = (
        "import os, signal, sys, threading, multiprocessing as mp\n"
        "from pathlib import Path\n"
        "from pretrain.data import check, pool\n"
        "from pretrain.data.sources import ImageList\n"
        "pool._TRY_SECONDS = pool._POOL_PAYS_SECONDS = 0.0\n"
        "def kill():\n"
        "    while len(mp.active_children()) < 2: pass\n"
        "    print(*[child.pid for child in mp.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    threading.Timer(0.0, kill).start()\n"
        "    check.check_images(ImageList(Path(sys.argv[1]), sys.argv[2].split(',') * 40), workers=2)\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    # stdout is a pipe that the workers inherit: communicate() returns only when they are gone too
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    arguments = [sys.executable, script, tmp_path, ",".join(names)]
    done = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, timeout=30)
    assert done.returncode == -9
    assert len(done.stdout.split()) == 2


def test_progress_is_shown_only_when_it_takes_long(tmp_path, monkeypatch, capsys):
    names = make_folder(tmp_path, 20, {})
    check_images(ImageList(tmp_path, names))
    assert capsys.readouterr().out == ""
    clock = iter(range(10_000))
    monkeypatch.setattr(pool_module.time, "monotonic", lambda: next(clock))
    check_images(ImageList(tmp_path, names))
    captured = capsys.readouterr()
    assert "checking images" in captured.out
    assert captured.err == ""


def test_limit_report_and_warnings(tmp_path, capsys):
    start_log()  # as a tool does
    report = tmp_path / "bad_images.txt"
    bad = [BadImage(f"{index}.jpg", "truncated") for index in range(25)]
    enforce_bad_limit(100, bad, 0.25, report)
    lines = report.read_text().splitlines()
    assert lines == [f"{index}.jpg\ttruncated" for index in range(25)]
    warned = capsys.readouterr().err.splitlines()
    assert warned[:20] == [f"warning: unreadable image {index}.jpg: truncated" for index in range(20)]
    assert warned[20:] == [f"warning: 5 more unreadable images, listed in {report}"]
    with pytest.raises(UserError) as caught:
        enforce_bad_limit(100, bad, 0.24, report)
    for part in ("25 of 100", "25 %", "24 %", "the first: 0.jpg: truncated", str(report), "--max-bad-fraction"):
        assert part in str(caught.value)


def test_limit_counts_a_share_of_all_files(tmp_path):
    bad = [BadImage(f"{index}.jpg", "x") for index in range(7)]
    enforce_bad_limit(100, bad, 0.07, tmp_path / "r.txt")  # 0.07 * 100 = 7.000000000000001
    enforce_bad_limit(700, bad, 0.01, tmp_path / "r.txt")
    with pytest.raises(UserError):
        enforce_bad_limit(699, bad, 0.01, tmp_path / "r.txt")
    with pytest.raises(UserError):
        enforce_bad_limit(700, bad[:1], 0.0, tmp_path / "r.txt")


def test_no_bad_image_writes_and_removes_nothing(tmp_path, capsys):
    enforce_bad_limit(10, [], 0.0, tmp_path / "new.txt")
    (tmp_path / "old.txt").write_text("x")
    enforce_bad_limit(10, [], 0.0, tmp_path / "old.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.txt"]
    assert capsys.readouterr().err == ""


def test_no_image_left_stops_whatever_the_limit(tmp_path):
    with pytest.raises(UserError, match=r"none of the 2 images.*the first: b\.jpg: empty; all .*r\.txt"):
        enforce_bad_limit(2, [BadImage("b.jpg", "empty"), BadImage("c.jpg", "empty")], 1.0, tmp_path / "r.txt")


def test_strange_names_stay_one_line_of_utf8(tmp_path, capsys):
    name = os.fsdecode(b"caf\xe9\n\t\xc3\xa4.jpg")
    assert printable(name) == "caf\\xe9\\n\\tä.jpg"
    report = tmp_path / "r.txt"
    start_log()
    enforce_bad_limit(9, [BadImage(name, "empty")], 1.0, report, root="/data")
    assert report.read_text(encoding="utf-8") == "/data/caf\\xe9\\n\\tä.jpg\tempty\n"
    assert capsys.readouterr().err == "warning: unreadable image /data/caf\\xe9\\n\\tä.jpg: empty\n"


@pytest.mark.skipif(not COCO_TINY.is_dir(), reason="the small real data is not beside the repository (../shared/data)")
def test_real_photographs():
    names = sorted(path.name for path in COCO_TINY.iterdir())[:10]
    assert len(names) == 10
    assert check_images(ImageList(COCO_TINY, names)) == []
