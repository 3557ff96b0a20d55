"""Where a pre-training starts from: weights that `convert` can read, kept beside the run in this project's format."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from pretrain.training.distributed import main_process_first
from pretrain.training.run_folder import RunFolder
from splitmask_backbones.checkpoints import read_encoder_file, save_encoder
from splitmask_backbones.convert import convert
from splitmask_backbones.errors import UserError
from splitmask_backbones.files import sha256_of
from splitmask_backbones.missing import check_path
from splitmask_backbones.run_files import INIT

logger = logging.getLogger(__name__)


def digest_of(source: Path) -> str:
    """Returns the sha256 (hex) of a file, or of all files of a folder by their names."""
    if source.is_file():
        return sha256_of(source)
    files = sorted(path for path in source.rglob("*") if path.is_file())
    listed = json.dumps([[path.relative_to(source).as_posix(), sha256_of(path)] for path in files])
    return hashlib.sha256(listed.encode()).hexdigest()


def prepare_start(source: str | None, folder: RunFolder) -> tuple[Path | None, str | None]:
    """Returns the encoder file to begin with and the digest of its source, None without; converts it for a new run.

    Args:
        source: of `--init`; None on a resume for what the run began with.

    Raises:
        ValueError: what `convert` raises, or the run that is resumed has lost its `INIT`.
    """
    place = folder.path / INIT
    before = (folder.previous or {}).get("--init")
    if folder.previous is not None:
        if source is not None:
            check_path(source, "--init (a resume needs none, it has its own):")
        digest = before if source is None else digest_of(Path(source))
        if before is not None and not place.exists():
            raise UserError(f"--resume: {place}, which the run began with, is gone: start anew in another --output")
        return (None if before is None else place), digest  # of another start, the comparison of the configs tells
    if source is None:
        if folder.is_main:
            place.unlink(missing_ok=True)  # of a start that failed
        return None, None
    if not source.strip():
        check_path(source, "--init")
    digest = digest_of(Path(source)) if Path(source).exists() else ""  # the conversion says that there is nothing
    with main_process_first() as is_main:
        if is_main:
            made = convert(source, place, overwrite=True)
            if made.family == "splitmask":  # of others, the conversion names them
                file = read_encoder_file(place)
                entry = {"file": Path(source).name, "sha256": made.sha256, "family": made.family}
                save_encoder(made.encoder, place, file.pyramid, file.partial, [*file.lineage, entry])
            logger.info("starting from %s (%s)", source, made.family)
    return place, digest


def lineage_of(init: Path | None) -> list[dict[str, Any]]:
    """Returns the lineage of what was begun with, empty without."""
    return [] if init is None else read_encoder_file(init).lineage
