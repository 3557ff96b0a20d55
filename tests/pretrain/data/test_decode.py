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

from pretrain.data.decode import FORMATS, UnreadableImage, read_image, read_size
from pretrain.data.pixel_limit import VARIABLE, set_pixel_limit
from tests.helpers.image_files import smooth
from tests.helpers.paths import ROOT as REPO


def read(path: Path) -> np.ndarray:
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp", "ppm", "jp2"])
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
    Image.fromarray(smooth()).save(tmp_path / "x.tga")
    with pytest.raises(UnreadableImage, match="not a jpg, png"):
        read_image(tmp_path / "x.tga")


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow was built without AVIF")
def test_avif_is_read_and_cut_short_is_bad(tmp_path):
    Image.fromarray(smooth()).save(tmp_path / "x.avif", quality=95)
    assert np.abs(read(tmp_path / "x.avif").astype(int) - smooth()).mean() < 4
    (tmp_path / "x.avif").write_bytes((tmp_path / "x.avif").read_bytes()[:-20])
    with pytest.raises(UnreadableImage):
        read_image(tmp_path / "x.avif")


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


def test_deep_grey_whose_zero_is_white_is_turned(tmp_path):
    values = np.array([[0, 1000], [3000, 2000]], dtype=np.uint16)
    for tag in (0, 1):
        Image.fromarray(values).save(tmp_path / f"{tag}.tif", tiffinfo={262: tag})
    white, black = (np.asarray(read_image(tmp_path / f"{tag}.tif")).astype(int) for tag in (0, 1))
    assert np.array_equal(white, 255 - black) and black[0, 0, 0] < black[1, 0, 0]
    values[0, 0] = 7  # where nothing was measured
    Image.fromarray(values).save(tmp_path / "hole.tif", tiffinfo={262: 0, 42113: "7"})
    assert np.asarray(read_image(tmp_path / "hole.tif"))[0, 0].tolist() == [0, 0, 0]


def test_dark_16_bit_grey_stays_dark(tmp_path):
    Image.fromarray(np.full((4, 4), 257 * 3, dtype=np.uint16)).save(tmp_path / "x.png")
    assert (read(tmp_path / "x.png") == 3).all()


def test_32_bit_integers(tmp_path):
    values = np.arange(0, 64 * 1000, 1000, dtype=np.int32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "small.tif")
    Image.fromarray(values * 1000 - 5).save(tmp_path / "large.tif")
    np.testing.assert_array_equal(read(tmp_path / "small.tif")[..., 2], np.rint(values / 257.0))
    large = read(tmp_path / "large.tif")[..., 2]
    assert np.abs(large - values / 63000 * 255).max() <= 0.8  # a thousandth of the values on each side is cut


def test_floats(tmp_path):
    unit = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for name, values in {"unit": unit, "bytes": unit * 255, "wide": unit * 7000 - 300}.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        assert np.abs(read(tmp_path / f"{name}.tif")[..., 0] - unit * 255).max() <= 0.8, name
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
    expected = UPRIGHT[orientation](smooth())
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), expected)
    assert read_size(tmp_path / f"x.{suffix}") == expected.shape[:2] and expected.shape[0] != expected.shape[1]


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


@pytest.mark.parametrize("limit", [99, 40])
def test_the_limit_says_what_lifts_it_and_what_that_takes(tmp_path, monkeypatch, limit):
    Image.new("RGB", (10, 10)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setenv(VARIABLE, "")  # both are put back after the test
    with pytest.raises(UnreadableImage, match=r"100 pixels .* of (99|40): .*tiles.*--max-pixels 100, .* 0.0 GB"):
        read_image(tmp_path / "x.png")
    set_pixel_limit(100)
    assert read_image(tmp_path / "x.png").size == (10, 10)
    code = "import sys; from pretrain.data.decode import read_image, read_size; print(read_size(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path / "x.png")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, env={**os.environ, VARIABLE: "40"})
    assert "of 40: " in done.stderr and "--max-pixels 100" in done.stderr  # another process follows the environment


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
