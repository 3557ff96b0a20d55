"""Pictures to look at: copied under numbers, drawn on by each finished run, found again for a grid."""

from collections.abc import Sequence
from pathlib import Path

from splitmask_backbones.files import write_atomically
from tools.running.job import Job


def copy_numbered(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Returns copies in `folder`, named 0.jpg, 1.png, ...: names may come with folders and repeat. Old ones stay."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}{source.suffix.lower()}" for number, source in enumerate(sources)]
    for source, file in zip(sources, files, strict=True):
        if not file.exists():
            write_atomically(file, source.read_bytes())
    return files


def prediction_job(training: str, tool: str, argv: tuple[str, ...], run: Path, pictures: Path, count: int) -> Job:
    """Returns the job that draws what a finished run predicts for numbered pictures.

    Args:
        training: name of the job that trains it.
        tool: such as "train_det.py".
        argv: of the tool, its config first.
        run: folder of the training.
        pictures: folder of `copy_numbered`.
        count: number of pictures; the last one ends the job.
    """
    argv, artefact = (*argv, "--predict", str(pictures)), f"predictions/{count - 1}.*"
    return Job(f"{training}/predict", tool, argv, run, artefact, (training,), resumable=False, seconds=15.0)


def drawn(run: Path, pictures: Sequence[Path]) -> list[Path]:
    """Returns the drawings of numbered pictures in the folder of a run."""
    return [next((run / "predictions").glob(f"{picture.stem}.*")) for picture in pictures]
