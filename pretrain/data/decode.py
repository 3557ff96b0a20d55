"""Any image file to upright 8-bit RGB, or a one-line reason why not."""

import contextlib
import errno
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from typing import IO

import numpy as np
from PIL import Image

from pretrain.data.jpeg_end import has_end
from pretrain.data.pixel_limit import apply_pixel_limit, too_large
from pretrain.data.value_range import ValueRange, is_deep, measured, to_8_bits

Image.init()
FORMATS = tuple(
    name
    for name in ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
    if name in Image.OPEN  # Pillow below 11.3 has no AVIF
)
"""What is read, by content: the suffix of a file plays no part. Of an animation the first frame is taken."""

_PHOTOMETRIC_TAG, _WHITE_IS_ZERO = 262, 0
_WIDTH_TAG, _HEIGHT_TAG = 256, 257  # of TIFF
_ORIENTATION_TAG = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# PIL warns about odd EXIF data, which does no harm, and about bombs, which are checked below. Once for the process:
# putting filters up and down around each image is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# These say that the machine is short of something, not that the file is bad.
_NOT_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message is the reason, one line without the path."""


def read_image(path: str | os.PathLike[str], value_range: ValueRange | None = None, reduction: int = 1) -> Image.Image:
    """Returns the image in ``path``, decoded to the end, as a PIL image of mode RGB, turned upright as its EXIF says.

    How other pixels become 8-bit RGB: one channel of more than 8 bits by `value_range`, as `value_range.to_8_bits` says
    (without one, by that of this image alone); CMYK, YCCK, LAB and YCbCr by PIL; colours behind transparency (alpha, or
    a transparent palette entry) are laid on white, as viewers show them. Embedded colour profiles are ignored, as
    everywhere in this field.

    Args:
        path: file.
        value_range: see above.
        reduction: 2, 4 or 8: a JPEG has only each so many pixels along either axis, rounded up, made by its decoder
            from fewer frequencies (libjpeg's scaling). Other files come in full.

    Raises:
        UnreadableImage: not a regular file, not one of FORMATS, truncated or damaged, or more pixels than the limit
            (``pixel_limit``; Pillow's own is about 89 million).
    """
    with _reasons(), open_regular(path) as file:
        image, transpose = _load(file, reduction)
        rgb = to_rgb(image, value_range)
        return rgb if transpose is None else rgb.transpose(transpose)


def read_deep(path: str | os.PathLike[str]) -> np.ndarray | None:
    """Returns the measured values `(N,)` of an image with one channel of more than 8 bits, None of others.

    Raises:
        UnreadableImage: as `read_image`.
    """
    with _reasons(), open_regular(path) as file:
        if not is_deep(Image.open(file, formats=FORMATS)):
            return None
        file.seek(0)
        image, _ = _load(file)
        values = np.asarray(image)
        return values[measured(values, image)]


@contextlib.contextmanager
def _reasons() -> Iterator[None]:
    """Turns whatever reading a file raises into UnreadableImage with a reason."""
    apply_pixel_limit()
    try:
        yield
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(too_large(int(re.findall(r"\d+", str(error))[0]))) from None  # PIL names the pixels
    except Image.UnidentifiedImageError:
        raise UnreadableImage(
            "not a jpg, png, webp, bmp, tiff, gif, avif, jp2 or ppm image, or its header is damaged"
        ) from None
    except OSError as error:
        if error.errno in _NOT_THE_FILE:
            raise
        raise UnreadableImage(_one_line(error.strerror or error)) from error
    except Exception as error:  # PIL's plugins let anything through: SyntaxError, struct.error, EOFError, KeyError, ...
        raise UnreadableImage(_one_line(f"damaged ({error or type(error).__name__})")) from error


def read_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns `(H, W)` of what `read_image` returns, from the header of a readable file alone.

    Raises:
        UnreadableImage: as `read_image`, where the header tells.
    """
    with _reasons(), open_regular(path) as file, Image.open(file, formats=FORMATS) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow has turned the size of these already
            width, height = (int(image.tag_v2[tag]) for tag in (_WIDTH_TAG, _HEIGHT_TAG))  # type: ignore[attr-defined]
        try:
            turned = image.getexif().get(_ORIENTATION_TAG, 1) in (5, 6, 7, 8)
        except Exception:  # damaged EXIF data counts for nothing, as in read_image
            turned = False
    return (width, height) if turned else (height, width)


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Returns an image file, opened.

    Raises:
        UnreadableImage: no regular file, or an empty one.
    """
    # O_NONBLOCK: opening a fifo that nobody writes to would wait for ever; it changes nothing for a regular file.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableImage("not a regular file")
        if status.st_size == 0:
            raise UnreadableImage("the file is empty (0 bytes)")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _load(file: IO[bytes], reduction: int = 1) -> tuple[Image.Image, Image.Transpose | None]:
    """Returns the decoded image, and how it is turned upright."""
    image: Image.Image = Image.open(file, formats=FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(too_large(image.width * image.height))
    kind = image.format
    if kind == "JPEG" and reduction > 1:
        image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
    with _silent_libtiff() if kind == "TIFF" else contextlib.nullcontext():
        image.load()
    if kind in ("JPEG", "MPO") and _jpeg_ends_in_zeros(file):
        raise UnreadableImage("truncated: the file ends in zeros and has no end-of-image marker")
    return image, turn_of(image)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """Returns how a decoded image is turned upright; before load() it would be that of TIFFs which PIL turns itself."""
    try:
        return _TRANSPOSE.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data: the pixels are good all the same
        return None


def to_rgb(image: Image.Image, value_range: ValueRange | None = None) -> Image.Image:
    """Returns a decoded image as 8-bit RGB, as `read_image` says; it is not turned."""
    if is_deep(image):
        values = np.asarray(image)
        there = measured(values, image)
        eight_bits = to_8_bits(values, there, value_range)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:  # Pillow turns those of 8 bits itself
            eight_bits = np.where(there, 255 - eight_bits, 0)
        return Image.fromarray(eight_bits).convert("RGB")
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    if image.mode != "RGB":
        return image.convert("RGB")
    bare = image._new(image.im)  # the pixels alone, not copied: the result must not hold the file or its metadata
    bare.info = {}
    return bare


def _jpeg_ends_in_zeros(file: IO[bytes]) -> bool:
    """Returns whether a JPEG is an unfinished download into reserved space, which PIL decodes without a word.

    Zeros after the end of the image do no harm.
    """
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\0":
        return False
    file.seek(0)
    return not has_end(file.read())


_STDERR_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):  # a data worker forked while another thread decodes must not wait for that thread
    os.register_at_fork(after_in_child=lambda: globals().update(_STDERR_LOCK=threading.Lock()))


@contextlib.contextmanager
def _silent_libtiff() -> Iterator[None]:
    """Sends what C code writes to stderr nowhere: libtiff reports each damaged strip there, next to its error code."""
    with _STDERR_LOCK:
        try:
            saved = os.dup(2)
        except OSError:  # stderr is closed
            yield
            return
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 2)
            os.close(nowhere)
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text[:200] or "unknown reason"
