"""Any image file to 8-bit RGB, or a one-line reason why not; and the check of a whole list before a run starts."""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from splitmask_backbones.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF")
"""What is read, by content: the suffix of a file plays no part. Of an animation the first frame is taken."""

MAX_NAMED = 20
"""Unreadable images named on the screen; the report file names all."""

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
# These say that the machine is short of something, not that the file is bad.
_NOT_THE_FILE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class UnreadableImage(ValueError):
    """An image file that cannot be used; the message is the reason, one line without the path."""


@dataclass(frozen=True)
class BadImage:
    """An unreadable image: its name in the list and the reason."""

    name: str
    reason: str


def read_image(path: str | os.PathLike[str]) -> Image.Image:
    """Returns the image in ``path``, decoded to the end, as a PIL image of mode RGB, turned upright as its EXIF says.

    How other pixels become 8-bit RGB: 16-bit grey ``v / 257`` (not clipped); CMYK, YCCK, LAB and YCbCr by PIL; colours behind
    transparency (alpha, or a transparent palette entry) are laid on white, as viewers show them; 32-bit integers within
    0..65535 count as 16-bit grey, floats within 0..1 are multiplied by 255, floats within 0..255 are rounded; other ranges are
    stretched from their minimum and maximum. Embedded colour profiles are ignored, as everywhere in this field.

    Raises:
        UnreadableImage: not a regular file, not one of FORMATS, truncated or damaged, or more pixels than PIL's
            decompression-bomb limit (``PIL.Image.MAX_IMAGE_PIXELS``, about 89 million).
    """
    try:
        with _open_regular(path) as file, warnings.catch_warnings():
            # PIL warns about odd EXIF data and about bombs; the first does no harm, the second is checked below.
            warnings.simplefilter("ignore")
            return _decode(file)
    except (UnreadableImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise UnreadableImage(_too_large()) from None
    except Image.UnidentifiedImageError:
        raise UnreadableImage("not a jpg, png, webp, bmp, tiff or gif image, or its header is damaged") from None
    except OSError as error:
        if error.errno in _NOT_THE_FILE:
            raise
        raise UnreadableImage(_one_line(error.strerror or error)) from error
    except Exception as error:  # PIL's plugins let anything through: SyntaxError, struct.error, EOFError, KeyError, ...
        raise UnreadableImage(_one_line(f"damaged ({error or type(error).__name__})")) from error


def _open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
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


def _decode(file: IO[bytes]) -> Image.Image:
    image: Image.Image = Image.open(file, formats=FORMATS)
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise UnreadableImage(f"{image.width} x {image.height} pixels: {_too_large()}")
    kind = image.format
    with _silent_libtiff() if kind == "TIFF" else contextlib.nullcontext():
        image.load()
    if kind in ("JPEG", "MPO") and _jpeg_ends_in_zeros(file):
        raise UnreadableImage("truncated: the file ends in zeros and has no end-of-image marker")
    # Read after load(): PIL turns TIFFs itself while it decodes them and then drops the tag.
    try:
        transpose = _TRANSPOSE.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # damaged EXIF data: the pixels are good all the same
        transpose = None
    rgb = _to_rgb(image)
    return rgb if transpose is None else rgb.transpose(transpose)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_grey_to_uint8(np.asarray(image))).convert("RGB")
    if image.mode in ("RGBa", "La"):  # premultiplied
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    # A copy even when it is RGB already: the result must not hold the file or its metadata.
    return image.convert("RGB") if image.mode != "RGB" else Image.frombytes("RGB", image.size, image.tobytes())


def _grey_to_uint8(values: np.ndarray) -> np.ndarray:
    """Returns uint8 (H, W) for integers or floats of any range; the rule stands in ``read_image``."""
    grey = np.nan_to_num(values.astype(np.float64), posinf=0.0, neginf=0.0)
    low, high = float(grey.min()), float(grey.max())
    if values.dtype.kind == "f":
        low, high = (0.0, 1.0) if 0 <= low and high <= 1 else (0.0, 255.0) if 0 <= low and high <= 255 else (low, high)
    elif 0 <= low and high <= 65535:
        low, high = 0.0, 65535.0
    return np.rint((grey - low) * (255.0 / max(high - low, np.finfo(np.float64).tiny))).astype(np.uint8)


def _jpeg_ends_in_zeros(file: IO[bytes]) -> bool:
    """Returns whether a JPEG is an unfinished download into reserved space, which PIL decodes without a word."""
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\0":
        return False
    file.seek(0)
    data = file.read()
    return data.find(b"\xff\xd9", data.rfind(b"\xff\xda")) < 0


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


def _too_large() -> str:
    return f"more than the decompression-bomb limit of {Image.MAX_IMAGE_PIXELS} pixels"


def _one_line(reason: object) -> str:
    text = " ".join(str(reason).split())
    return text[:200] or "unknown reason"


def _reason(root: str, name: str) -> str | None:
    try:
        read_image(os.path.join(root, name))
    except UnreadableImage as error:
        return str(error)
    return None


def check_images(root: str | os.PathLike[str], names: Sequence[str], workers: int = 0) -> list[BadImage]:
    """Returns the unreadable ones of ``root / name``, in the order of ``names``; decodes every file to its end.

    Args:
        root: folder that the names are relative to.
        names: relative (or absolute) paths.
        workers: processes that decode; 0 and 1 decode in this one. The result is the same. Shows a progress bar on stdout
            when it takes more than 2 seconds.
    """
    folder = os.fspath(root)
    bad = []
    with contextlib.ExitStack() as stack:
        reasons = _reasons(folder, names, workers, stack)
        for name, reason in zip(names, _with_progress(reasons, len(names), stack), strict=True):
            if reason is not None:
                bad.append(BadImage(name, reason))
    return bad


_CHUNK = 32


def _reasons(root: str, names: Sequence[str], workers: int, stack: contextlib.ExitStack) -> Iterator[str | None]:
    if workers <= 1 or len(names) <= 8 * _CHUNK:  # starting processes takes longer than that many images
        return (_reason(root, name) for name in names)
    # Spawned, not forked: the caller may hold torch's or faiss' threads, and a forked lock that nobody releases.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return iter(pool.map(_reason, [root] * len(names), names, chunksize=_CHUNK))


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with the parent even when that is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _with_progress(items: Iterator[Any], total: int, stack: contextlib.ExitStack) -> Iterator[Any]:
    start = time.monotonic()
    progress = None
    for done, item in enumerate(items, start=1):
        if progress is None and done < total and time.monotonic() - start > 2:
            from rich import progress as bars

            columns = (bars.TextColumn("checking images"), bars.BarColumn(), bars.MofNCompleteColumn())
            progress = bars.Progress(*columns, bars.TimeRemainingColumn(), transient=True)
            stack.enter_context(progress)
            task = progress.add_task("checking images", total=total, completed=done)
        elif progress is not None:
            progress.update(task, completed=done)
        yield item


def enforce_bad_limit(
    num_files: int,
    bad: Sequence[BadImage],
    max_fraction: float,
    report_path: str | os.PathLike[str],
    root: str | os.PathLike[str] | None = None,
) -> None:
    """Reports unreadable images and stops the run when there are too many; does nothing when there is none.

    Writes all of them to ``report_path`` (``path<TAB>reason`` a line; tabs, line ends, backslashes and bytes that are not
    UTF-8 in a path are written as in ``a\\tb``, ``\\xff``) and one ``warning:`` line for each of the first 20 to stderr.

    Args:
        num_files: all files found, the unreadable ones included.
        bad: from ``check_images``.
        max_fraction: share of ``num_files`` in [0, 1] that may be unreadable (``--max-bad-fraction``).
        report_path: file to write, ``bad_images.txt`` in the run's folder.
        root: put before the names, so that the report holds whole paths.

    Raises:
        UserError: more than ``max_fraction * num_files`` are unreadable, or none is left.
    """
    if not bad:
        return
    shown = [printable(item.name if root is None else os.path.join(root, item.name)) for item in bad]
    _write_report(Path(report_path), [f"{path}\t{item.reason}\n" for path, item in zip(shown, bad, strict=True)])
    for path, item in list(zip(shown, bad, strict=True))[:MAX_NAMED]:
        sys.stderr.write(f"warning: unreadable image {path}: {item.reason}\n")
    if len(bad) > MAX_NAMED:
        sys.stderr.write(f"warning: {len(bad) - MAX_NAMED} more unreadable images, listed in {report_path}\n")
    sys.stderr.flush()
    first = f"the first is {shown[0]}: {bad[0].reason}; all are listed in {report_path}"
    if len(bad) >= num_files:
        raise UserError(f"none of the {num_files} images can be read; {first}; repair them or choose other images")
    # A tolerance of rounding only: 0.07 * 100 is 7.000000000000001.
    if len(bad) > max_fraction * num_files + 1e-9:
        share = 100 * len(bad) / num_files
        raise UserError(
            f"{len(bad)} of {num_files} images ({share:.3g} %) cannot be read, more than the limit of {100 * max_fraction:.3g} %; "
            f"{first}; repair or remove them, or raise --max-bad-fraction"
        )


def printable(name: str) -> str:
    """Returns ``name`` as one line of valid UTF-8: backslashes, control characters and raw bytes are escaped."""
    text = os.fsencode(name).replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() or char == " " else char.encode("unicode_escape").decode() for char in text)


def _write_report(path: Path, lines: list[str]) -> None:
    beside = path.with_name(path.name + ".part")
    try:
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
        os.replace(beside, path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
