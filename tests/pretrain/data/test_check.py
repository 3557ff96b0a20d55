"""Reading: every kind of pixel comes out right, every kind of damage is named, nothing hangs."""

import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from pretrain.data import check as images_module
from pretrain.data.check import BadImage, check_images, enforce_bad_limit, printable
from pretrain.data.decode import UnreadableImage, read_image
from splitmask_backbones.errors import UserError
from tests.helpers.paths import ROOT as REPO
from tools.cli import start_log

COCO_TINY = REPO.parent / "shared/data/coco_tiny/train2017"


def smooth(height: int = 24, width: int = 40) -> np.ndarray:
    """A colour image that survives JPEG: gradients, another one in each channel."""
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y / height, 255 * x / width, 255 * (x + y) / (height + width)], -1).astype(np.uint8)


def read(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp"])
def test_lossless_formats(tmp_path, suffix):
    pixels = smooth()
    image = Image.fromarray(pixels)
    if suffix == "gif":
        image = image.quantize(256)
        pixels = np.asarray(image.convert("RGB"))
    image.save(tmp_path / f"x.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), pixels)


def test_content_decides_not_the_suffix(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.JPG")
    np.testing.assert_array_equal(read(tmp_path / "x.JPG"), smooth())


def test_formats_outside_the_list_are_refused(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "x.ppm")
    with pytest.raises(UnreadableImage, match="not a jpg, png"):
        read_image(tmp_path / "x.ppm")


def test_grey_and_one_bit(tmp_path):
    grey = smooth()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey > 100).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(read(tmp_path / "bit.png")[..., 1], np.where(grey > 100, 255, 0))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    values = np.linspace(0, 65535, 24 * 40).reshape(24, 40).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    pixels = read(tmp_path / f"x.{suffix}")
    np.testing.assert_array_equal(pixels[..., 0], np.rint(values / 257.0))
    assert (pixels[..., :1] == pixels).all()


def test_dark_16_bit_grey_stays_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 3, dtype=np.uint16)).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png") == 3).all()


def test_32_bit_integers(tmp_path):
    values = np.arange(0, 64 * 1000, 1000, dtype=np.int32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "small.tif")
    Image.fromarray(values * 1000 - 5).save(tmp_path / "large.tif")
    np.testing.assert_array_equal(read(tmp_path / "small.tif")[..., 2], np.rint(values / 257.0))
    np.testing.assert_array_equal(read(tmp_path / "large.tif")[..., 2], np.rint(values / 63000 * 255))


def test_floats(tmp_path):
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for name, values in {"unit": unit, "bytes": unit * 255, "wide": unit * 7000 - 300}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        assert np.abs(read(tmp_path / f"{name}.tif")[..., 0] - unit * 255).max() <= 0.51, name
    broken = unit.copy()
    broken[0, 0], broken[1, 1] = np.nan, np.inf
    Image.fromarray(broken).save(tmp_path / "nan.tif")
    assert read(tmp_path / "nan.tif")[0, 0, 0] == 0
    assert read(tmp_path / "nan.tif")[7, 7, 0] == 255


def test_cmyk_jpeg(tmp_path):
    Image.fromarray(smooth()).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.mode == "CMYK"
    assert np.abs(read(tmp_path / "x.jpg").astype(int) - smooth()).mean() < 4


def test_lab_tiff(tmp_path):
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    ImageCms.applyTransform(Image.fromarray(smooth()), to_lab).save(tmp_path / "x.tif")
    assert np.abs(read(tmp_path / "x.tif").astype(int) - smooth()).mean() < 4


def test_transparency_lies_on_white(tmp_path):
    alpha = np.tile(np.array([0, 128, 255, 255], dtype=np.uint8), (24, 10))
    Image.fromarray(np.dstack([smooth(), alpha])).save(tmp_path / "rgba.png")
    share = alpha[..., None] / 255
    expected = smooth() * share + 255 * (1 - share)
    assert np.abs(read(tmp_path / "rgba.png") - expected).max() <= 1
    np.testing.assert_array_equal(read(tmp_path / "rgba.png")[:, 2::4], smooth()[:, 2::4])
    Image.fromarray(np.dstack([smooth()[..., 0], alpha])).save(tmp_path / "la.png")
    assert np.abs(read(tmp_path / "la.png")[..., 0] - expected[..., 0]).max() <= 1


def test_palettes(tmp_path):
    image = Image.fromarray((np.arange(64, dtype=np.uint8) % 3).reshape(8, 8)).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    image.save(tmp_path / "plain.png")
    image.save(tmp_path / "hole.png", transparency=1)
    image.save(tmp_path / "bytes.png", transparency=bytes([255, 0, 255]))
    colours = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]])
    indices = np.arange(64).reshape(8, 8) % 3
    np.testing.assert_array_equal(read(tmp_path / "plain.png"), colours[indices])
    colours[1] = 255
    np.testing.assert_array_equal(read(tmp_path / "hole.png"), colours[indices])
    np.testing.assert_array_equal(read(tmp_path / "bytes.png"), colours[indices])


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_first_frame_of_an_animation(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (read(tmp_path / f"x.{suffix}") == (255, 0, 0)).all()


UPRIGHT = {  # what a viewer does to the stored pixels, EXIF 2.32 tag 0x0112
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(smooth()).save(tmp_path / f"x.{suffix}", exif=exif, **options)
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), UPRIGHT[orientation](smooth()))


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(smooth()).save(tmp_path / "x.jpg", exif=exif, quality=95)
    assert np.abs(read(tmp_path / "x.jpg").astype(int) - np.rot90(smooth(), -1)).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_nonsense_orientation_is_ignored(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth()).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), smooth())


def test_damaged_exif_does_not_make_the_pixels_bad(tmp_path):
    Image.fromarray(smooth()).save(
        tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0", quality=95
    )
    assert np.abs(read(tmp_path / "x.jpg").astype(int) - smooth()).mean() < 4


@pytest.mark.parametrize("size", [(1, 1), (10000, 3), (1, 500)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_any_size(tmp_path, size, suffix):
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / f"x.{suffix}")
    assert read_image(tmp_path / f"x.{suffix}").size == size


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "gif", "bmp", "tif"])
@pytest.mark.parametrize("keep", [0.95, 0.5, 0.05])
def test_truncated_files_are_bad(tmp_path, suffix, keep):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.fromarray(noise).save(tmp_path / f"x.{suffix}", **options)
    data = (tmp_path / f"x.{suffix}").read_bytes()
    (tmp_path / f"x.{suffix}").write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / f"x.{suffix}")
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_progressive_jpeg_is_bad(tmp_path):
    Image.fromarray(smooth(200, 200)).save(tmp_path / "x.jpg", progressive=True)
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "x.jpg").write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(tmp_path / "x.jpg")


def test_jpeg_filled_up_with_zeros_is_bad_and_padding_is_not(tmp_path):
    Image.fromarray(smooth(200, 200)).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(data[: len(data) // 2] + bytes(len(data) // 2))
    (tmp_path / "padded.jpg").write_bytes(data + bytes(100))
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(tmp_path / "half.jpg")
    assert read_image(tmp_path / "padded.jpg").size == (200, 200)


def test_png_with_a_wrong_checksum_is_bad(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "x.png")
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[60] ^= 0xFF
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"no image at all\n", "not a jpg"), (b"\xff\xd8\xff", "not a jpg")]
)
def test_not_an_image(tmp_path, content, reason):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason):
        read_image(tmp_path / "x.jpg")


def test_only_regular_files(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    for name in ("folder.jpg", "loop.jpg", "broken.jpg", "device.jpg", "missing.jpg", "nul\0.jpg"):
        with pytest.raises(UnreadableImage):
            read_image(tmp_path / name)
    Image.fromarray(smooth()).save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to("x.png")
    np.testing.assert_array_equal(read(tmp_path / "link.png"), smooth())


def test_fifo_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    outcome = []

    def attempt():
        try:
            read_image(tmp_path / "x.jpg")
        except UnreadableImage as error:
            outcome.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert outcome == ["not a regular file"]


@pytest.mark.parametrize("limit", [99, 40])  # PIL itself raises only above twice its limit, and warns between
def test_decompression_bomb_is_bad(tmp_path, monkeypatch, limit):
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(UnreadableImage, match="bomb"):
        read_image(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert read_image(tmp_path / "x.png").size == (10, 10)


def test_too_many_open_files_is_not_the_fault_of_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(OSError, match="Too many"):
        read_image(tmp_path / "x.png")


def test_the_result_holds_nothing_of_the_file(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(smooth()).save(tmp_path / "x.png", exif=exif)
    image = read_image(tmp_path / "x.png")
    assert not image.info
    (tmp_path / "x.png").unlink()
    assert image.copy().size == (40, 24)


def test_quiet_about_damage_in_every_library(tmp_path):
    """PIL warns and libtiff writes to file descriptor 2 on its own: neither may reach the screen."""
    Image.fromarray(smooth()).save(tmp_path / "x.tif", compression="tiff_lzw")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    data[20:200] = b"\xff" * 180
    (tmp_path / "x.tif").write_bytes(data)
    Image.fromarray(smooth()).save(tmp_path / "y.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01\x03\0")
    code = (
        "import sys; from pretrain.data.check import check_images;"
        "bad = check_images(sys.argv[1], ['x.tif', 'y.jpg']); print([b.name for b in bad])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['x.tif']"
    assert done.stderr == ""


def test_reading_does_not_import_torch():
    code = "import sys, pretrain.data.check, pretrain.data.sources; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=60)


def test_threads_leave_the_warning_filters_alone(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "x.png")
    before = list(warnings.filters)
    threads = [threading.Thread(target=lambda: [read_image(tmp_path / "x.png") for _ in range(20)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


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
    alone = check_images(tmp_path, names)
    assert [bad.name for bad in alone] == expected
    assert alone[0].reason == "the file is empty (0 bytes)"
    assert alone[1].reason == "No such file or directory"
    assert check_images(tmp_path, names, workers=2) == alone
    # from the second image on in other processes
    monkeypatch.setattr(images_module, "_TRY_SECONDS", 0.0)
    monkeypatch.setattr(images_module, "_POOL_PAYS_SECONDS", 0.0)
    started = []
    pool = images_module.ProcessPoolExecutor
    monkeypatch.setattr(images_module, "ProcessPoolExecutor", lambda *a, **k: started.append(a) or pool(*a, **k))
    assert check_images(tmp_path, names, workers=2) == alone
    assert started == [(2,)]
    assert check_images(tmp_path, []) == []


def test_check_workers_die_with_a_killed_parent(tmp_path):
    names = make_folder(tmp_path, 300, {})
    code = (
        "import os, signal, sys, threading, multiprocessing as mp\n"
        "from pretrain.data import check as images\n"
        "images._TRY_SECONDS = images._POOL_PAYS_SECONDS = 0.0\n"
        "def kill():\n"
        "    while len(mp.active_children()) < 2: pass\n"
        "    print(*[child.pid for child in mp.active_children()], flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if __name__ == '__main__':\n"
        "    threading.Timer(0.0, kill).start()\n"
        "    images.check_images(sys.argv[1], sys.argv[2].split(',') * 40, workers=2)\n"
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
    check_images(tmp_path, names)
    assert capsys.readouterr().out == ""
    clock = iter(range(10_000))
    monkeypatch.setattr(images_module.time, "monotonic", lambda: next(clock))
    check_images(tmp_path, names)
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
    for part in ("25 of 100", "25 %", "24 %", "0.jpg", "truncated", str(report), "--max-bad-fraction"):
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
    with pytest.raises(UserError, match=r"none of the 2 images.*b\.jpg: empty.*r\.txt"):
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
    assert check_images(COCO_TINY, names) == []
