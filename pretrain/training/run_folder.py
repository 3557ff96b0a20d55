"""The output folder of one run: its lock, its config, and what may be resumed. Free of torch."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import math
import re
import shutil
import weakref
from pathlib import Path
from typing import Any

from pretrain.training.processes import processes
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import NO_LOCKS, write_atomically
from splitmask_backbones.run_files import BAD_IMAGES, CHECKPOINTS, CONFIG, LOCK, METRICS_LOG, REHEARSAL_RECORD, RESULTS

logger = logging.getLogger(__name__)

_OF_THE_BYTES = {
    "device": "on another device",
    "processes": "with another number of processes",
    "threads": "with another number of threads",
    "compiled": "compiled or not",
}
"""What is free to change and yet rounds or draws otherwise, and how it is told."""
_TEMPORARY = re.compile(r"\.tmp\w{6}|\..+\.tmp")
"""What a save that was killed leaves beside its target: safetensors' own files, and those of this project."""

_held: weakref.WeakValueDictionary[tuple[int, int], RunFolder] = weakref.WeakValueDictionary()
"""Folders that this process has locked, by device and inode: the system's lock holds off other processes alone."""


def strict_json(value: Any) -> Any:
    """Returns the value with NaN and infinities as None, so that the file is JSON for every reader."""
    if isinstance(value, dict):
        return {str(key): strict_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    """Writes strict JSON; an existing file is replaced at once or not at all."""
    # ASCII: names of files that are not UTF-8 come back as they were.
    write_atomically(path, (json.dumps(strict_json(value), indent=2, allow_nan=False) + "\n").encode())


def read_object(path: Path) -> dict[str, Any]:
    """Returns a JSON object, an empty one where there is none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def option_name(dotted: str) -> str:
    """Returns the name that a user knows a config entry by.

    `values.batch_size` is `--batch-size`, `recipe_values.rois` is `rois=`, `data.num_files` is `--data (num_files)`.
    """
    head, _, rest = dotted.partition(".")
    if not rest:
        return dotted
    known = {"values": f"--{rest.replace('_', '-')}", "recipe_values": f"{rest}=", "data": f"--data ({rest})"}
    return known.get(head, dotted)


class RunFolder:
    """Owns an output folder for as long as the process lives (rank 0 only; other ranks just read).

    Attributes:
        path: the folder.
        artefact: name of the file that a finished run ends with.
        previous: config.json of the run that is resumed, else None.
        resumed: whether an earlier run is continued.
    """

    def __init__(self, path: Path, artefact: str, resumed: bool, previous: dict[str, Any] | None) -> None:
        self.path = path
        self.artefact = artefact
        self.resumed = resumed
        self.previous = previous
        self.is_main = processes().rank == 0
        self._lock_file: Any = None
        self._created = False
        self._started = False

    def start(self) -> None:
        """Marks that training begins: from now on the folder holds a run that can be resumed."""
        self._started = True

    @classmethod
    def open(cls, path: str | Path, *, resume: bool, artefact: str, anew: bool = False) -> RunFolder:
        """Returns the folder, locked.

        Args:
            path: is created, with parents, for a new run.
            resume: continue the run that the folder holds.
            artefact: file name that marks a finished run, such as "encoder.safetensors".
            anew: what an earlier rehearsal has left in the folder goes first.

        Raises:
            ValueError: the folder holds another run, is in use, or there is nothing to resume.
        """
        if not str(path).strip():
            raise UserError("--output is empty: name a folder")
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {path} is a file: name a folder")
        started = (path / LOCK).exists() or (path / CONFIG).exists()
        if resume and not started:
            raise UserError(f"--resume: there is nothing to resume in {path}: start without --resume")
        if resume and not (path / CONFIG).exists() and any((path / CHECKPOINTS).glob("*")):
            raise UserError(
                f"--resume: {path / CONFIG} is missing, which says what run its checkpoints are of: put it back, "
                "or start anew in another --output"
            )
        folder = cls(path, artefact, resume, None)
        if folder.is_main:
            folder._created = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            folder._lock()
            if anew:
                folder._check_rehearsal()
                folder._clear()
        names = dict.fromkeys((CONFIG, CHECKPOINTS, METRICS_LOG, RESULTS, artefact))
        holds = [name for name in names if (path / name).exists()]
        if METRICS_LOG in holds and not (path / METRICS_LOG).stat().st_size:
            holds.remove(METRICS_LOG)  # of a start that failed
        if not resume and holds and folder.is_main:
            folder.close()
            raise UserError(
                f"--output {path} holds another run ({', '.join(holds)}): choose another folder, "
                "or continue that run with --resume"
            )
        if not resume and folder.is_main:
            (path / BAD_IMAGES).unlink(missing_ok=True)  # of a start that failed, maybe with other data
        if resume and (path / CONFIG).exists():
            try:
                folder.previous = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            except ValueError as error:
                folder.close()
                raise UserError(f"{path / CONFIG} is damaged ({error}): the run cannot be resumed") from None
        return folder

    def _lock(self) -> None:
        status = self.path.stat()
        identity = status.st_dev, status.st_ino
        if identity in _held:  # to be asked first: even to open and close the file would release the lock
            raise UserError(
                f"--output {self.path} is in use by another run of this process: wait for it, or choose another folder"
            )
        # lockf and not flock: the lock belongs to this process, and forked data workers do not inherit it.
        self._lock_file = open(self.path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 (held for the whole run)
        try:
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                self._lock_file.close()
                self._lock_file = None
                what = "is in use by another process: wait for it"
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    what = f"cannot be locked ({error.strerror}): mount it again"
                raise UserError(f"--output {self.path} {what}, or choose another folder") from None
            text = "--output %s lies on a file system without locks (%s): see to it that no second run writes there"
            logger.warning(text, self.path, error.strerror)
        _held[identity] = self
        if not (self.path / CONFIG).exists():
            return
        for folder in (self.path, self.path / CHECKPOINTS):  # whoever wrote them held the lock, and is gone
            for file in folder.iterdir() if folder.is_dir() else ():
                if _TEMPORARY.fullmatch(file.name) and file.is_file():
                    file.unlink(missing_ok=True)

    def _check_rehearsal(self) -> None:
        """Raises ValueError where the folder holds another run than one that may be cleared away."""
        config = read_object(self.path / CONFIG)
        if config and not config.get("rehearsal") and not (self.path / REHEARSAL_RECORD).exists():
            self.close()
            raise UserError(
                f"{self.path}, where each rehearsal is made anew, holds a run: move it, or choose another --output"
            )

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()

    @property
    def finished(self) -> bool:
        """Whether the run's final artefact exists."""
        return (self.path / self.artefact).exists()

    def write_config(self, config: dict[str, Any]) -> None:
        """Writes config.json, or checks on a resume that nothing that affects the result has changed.

        Entries under the top-level key "free" (workers, paths, versions) are not compared.

        Raises:
            ValueError: names the first entries that differ, with both values.
        """
        # Through JSON, so that tuples and lists compare equal.
        config = json.loads(json.dumps(strict_json(config)))
        if self.previous is None:
            if self.is_main:
                write_json(self.path / CONFIG, config)
            return
        before, now = ({k: v for k, v in c.items() if k != "free"} for c in (self.previous, config))
        before, now = flatten(before), flatten(now)
        # A value that is not there is None.
        different = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if different:
            listed = "; ".join(
                f"{option_name(key)} was {before.get(key, '(absent)')} and is now {now.get(key, '(absent)')}"
                for key in different[:4]
            )
            raise UserError(
                f"--resume: {self.path} holds a run with other settings: {listed}: "
                "use the old values, or start anew in another --output"
            )
        for name, told in _OF_THE_BYTES.items():
            values = [entry.get("free", {}).get(name) for entry in (self.previous, config)]
            if name == "threads" and config.get("free", {}).get("device") != "cpu":
                continue
            if self.is_main and not self.finished and None not in values and values[0] != values[1]:
                what = "the bytes will not be those of an uninterrupted run"
                logger.warning("--resume %s (%s, now %s): %s", told, *values, what)

    def close(self, failed: bool = False) -> None:
        """Releases the lock. After a failure before the first step, leaves no run behind: the folder can be used."""
        if self._lock_file is None:
            return
        if failed and self.previous is None and not self._started:
            for name in (CONFIG, LOCK):
                (self.path / name).unlink(missing_ok=True)
            if self._created and not any(self.path.iterdir()):
                self.path.rmdir()
        self._lock_file.close()
        self._lock_file = None
        for identity in [identity for identity, folder in _held.items() if folder is self]:
            del _held[identity]

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.close(failed=isinstance(error, Exception))


def check_command(previous: dict[str, Any], command: str) -> None:
    """Raises ValueError where a config.json is that of another tool."""
    made = previous.get("command", command)
    if made != command:
        raise UserError(
            f"--resume: the run in --output was made by tools/{made}.py and not by tools/{command}.py: "
            "choose another --output"
        )
