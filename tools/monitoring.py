"""The options of tools/pretrain.py for looking at a run while it trains, and what they turn into. Free of torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.recipes import Recipe
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import MONITOR_LOG
from tools import cli

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from pretrain.data.sources import ImageList
    from pretrain.methods.base import Method
    from pretrain.monitoring.monitor import Monitor
    from tools.common.plots import Curves

NUM_IMAGES = 256
LITTLE_MORE = 2.0
"""Matching that gets less than this many times as far as colours do. On nuclei it harmed at 1.5, on CamVid not at 5."""
COLLAPSED = 0.3
"""Attention entropy below which a block attends to few tokens. On nuclei it harmed at 0.05 and 0.16, not at 0.56."""
PANELS = {
    "loss": ("train_loss_inpaint", "holdout_loss_inpaint", "train_loss_large", "holdout_loss_large"),
    "token accuracy, match rank": (
        "train_token_accuracy",
        "holdout_token_accuracy",
        "train_match_rank1",
        "holdout_match_rank1",
        "train_color_rank1",
    ),
    "entropy of the token ids, bits": ("targets_entropy_bits", "predictions_entropy_bits"),
    "gains of inpainting, nats": (
        "train_inpaint_gain",
        "holdout_inpaint_gain",
        "train_query_gain",
        "train_neighbour_gain",
    ),
    "effective rank of the features": ("effective_rank",),
    "least attention entropy of a block": ("attention_entropy",),
    "kNN accuracy": ("knn_accuracy",),
}


@dataclass(frozen=True)
class MonitorOptions:
    """What is looked at while a run trains; None where it is not said.

    Attributes:
        monitor_every: steps between two looks; 0 for none.
        monitor_images: images of each kind that are looked at, at most.
        monitor_labels: folder of labelled images.
        holdout: share of the images that is kept out of training, in [0, 1].
    """

    monitor_every: int | None
    monitor_images: int | None
    monitor_labels: str | None
    holdout: float | None

    def check_monitoring(self, kept: int | None = None) -> None:
        """Raises ValueError for an option without effect; `kept` is the `monitor_every` of a resumed run."""
        every = kept if self.monitor_every is None else self.monitor_every
        for name in OPTIONS:
            if (given := getattr(self, name)) and not every:
                raise UserError(
                    f"--{name.replace('_', '-')} {given} has no effect without --monitor-every: add it, or omit both"
                )


OPTIONS = tuple(field.name for field in fields(MonitorOptions))


def add_options(parser: cli.Parser) -> None:
    """Adds `OPTIONS` in a group of their own."""
    group = parser.add_argument_group("monitoring, into DIR/monitor.jsonl and DIR/monitor.png")
    group.add_argument(
        "--monitor-every", type=cli.non_negative_int, metavar="STEPS", help="interval of the looks (default 0: none)"
    )
    group.add_argument(
        "--monitor-images",
        type=cli.positive_int,
        metavar="N",
        help=f"images of each kind, at most (default {NUM_IMAGES})",
    )
    group.add_argument(
        "--monitor-labels", metavar="PATH", help="a folder of images per class, or train and val with these: kNN"
    )
    group.add_argument(
        "--holdout", type=cli.fraction, metavar="F", help="share kept out of training: its loss shows over-fitting"
    )


def prepare(
    options: MonitorOptions, images: ImageList, fabric: Fabric, workers: int
) -> tuple[ImageList, Callable[[Method, Recipe], Monitor] | None]:
    """Returns the images to train on, and what makes the monitor of a method; None where nothing is to be looked at.

    The main process alone looks.

    Raises:
        ValueError: what `split_holdout` and `open_labelled` raise.
    """
    holdout = labelled = None
    limit = options.monitor_images or NUM_IMAGES
    trained = images
    if options.holdout:
        from pretrain.data.sources import split_holdout

        trained, holdout = split_holdout(images, options.holdout)
    if not options.monitor_every or not fabric.is_global_zero:
        return trained, None
    if holdout is not None:
        print(f"{len(holdout)} of {len(images)} images are kept out of training")
    if options.monitor_labels:
        from pretrain.monitoring.labelled import open_labelled

        labelled = open_labelled(options.monitor_labels, limit, images.value_range)
        print(
            f"kNN: {labelled.num_known} known images of {labelled.num_classes} classes, "
            f"{len(labelled.images) - labelled.num_known} to classify"
        )
    from pretrain.monitoring.monitor import Monitor

    sources: Any = {"images": trained, "holdout": holdout, "labelled": labelled}
    return trained, partial(Monitor, **sources, num_images=limit, fabric=fabric, workers=workers)


def draw(run_dir: Path) -> None:
    """Writes monitor.png beside the monitor.jsonl of a run, where there is one."""
    from pretrain.training.metrics import read_json_lines
    from tools.common.plots import curve, save_curves

    entries = read_json_lines(run_dir / MONITOR_LOG)
    panels: dict[str, Curves] = {}
    for title, names in PANELS.items():
        curves = {name.replace("_", " "): curve(entries, name) for name in names}
        if kept := {name: points for name, points in curves.items() if points[0]}:
            panels[title] = kept
    if panels:
        save_curves(panels, run_dir / "monitor.png")


def advise(run_dir: Path, branch_jitter: float, match_weight: float, qk_limit: float | None) -> list[str]:
    """Returns what the last look of a run shows to be wrong, with the remedy, a line each.

    Where the run had `branch_jitter`, its matching could not go by colours, and is not compared with them; nor where it
    had no matching.
    """
    from pretrain.training.metrics import read_json_lines

    entries = read_json_lines(run_dir / MONITOR_LOG)
    last = entries[-1] if entries else {}
    found = []
    gain = last.get("train_inpaint_gain")
    if gain is not None and gain <= 0:
        found.append(
            f"inpainting does no better than one guess for all patches would (gain {gain:.2f} nats): train longer, or "
            "with another --patch-norm or --base-lr"
        )
    matched, colors = last.get("train_match_rank1"), last.get("train_color_rank1")
    if match_weight and not branch_jitter and matched is not None and colors and matched < LITTLE_MORE * colors:
        found.append(
            f"matching finds {matched:.0%} of the crops, and their colours alone would find {colors:.0%}: it may have "
            "learned little else. Try --branch-jitter 0.4 or a smaller --match-weight"
        )
    entropy = last.get("attention_entropy")
    if entropy is not None and entropy < COLLAPSED:
        limit = "--qk-limit 3" if qk_limit is None else f"a --qk-limit below {qk_limit:g}"
        found.append(
            f"a block attends to few patches (attention entropy {entropy:.2f} of 1): its attention has collapsed, and "
            f"the encoder may be worth less than earlier. Try {limit} or fewer steps"
        )
    return found
