"""The encoder against detectron2's own ViT with the same blocks and sizes: forward + backward time and peak memory."""

import multiprocessing
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from pretrain.training.distributed import make_fabric
from splitmask_backbones import create_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS
from tools.benchmarks import in_turns
from tools.benchmarks.memory import free_memory, peak_of
from tools.common.plots import print_table

WINDOW_SIZE = 14
WINDOW_BLOCKS = {12: (0, 1, 3, 4, 6, 7, 9, 10), 24: tuple(i for i in range(24) if i % 6 != 5)}
"""Blocks with windows by depth: four global ones, evenly spaced (ViTDet)."""

HEADER = ("blocks", "ours s", "detectron2 s", "time ratio", "ours MB", "detectron2 MB", "memory ratio")
NO_ROOM = "no memory"
CASES = {
    "global": {"windows": False, "rel_pos": False},
    "global, relative positions": {"windows": False, "rel_pos": True},
    "windows": {"windows": True, "rel_pos": False},
    "windows, relative positions (ViTDet)": {"windows": True, "rel_pos": True},
}


warnings.filterwarnings("ignore", category=FutureWarning)  # of detectron2 about torch and timm


def build(whose: str, model: str, img_size: int, windows: bool, rel_pos: bool) -> nn.Module:
    """Returns a module from images to the last map: `whose` is "ours" or "detectron2"."""
    sizes = ENCODERS[model]
    shared: dict[str, Any] = {"img_size": img_size, "use_rel_pos": rel_pos}
    if windows:
        shared |= {"window_size": WINDOW_SIZE, "window_block_indexes": WINDOW_BLOCKS[sizes["depth"]]}
    if whose == "ours":
        return LastMap(create_encoder(model, final_norm=False, **shared))
    from detectron2.modeling import ViT

    return LastMap(ViT(pretrain_img_size=img_size, pretrain_use_cls_token=False, **sizes, **shared))


class LastMap(nn.Module):
    """Calls either ViT for its last map."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns `(B, C, H / p, W / p)`."""
        if hasattr(self.vit, "forward_maps"):
            return self.vit.forward_maps(images)[-1]  # type: ignore[operator]
        return self.vit(images)["last_feat"]


def make_step(
    whose: str, model: str, img_size: int, batch_size: int, precision: str, device: str, case: dict[str, bool]
) -> Callable[[], None]:
    """Returns a call that runs forward and backward once."""
    torch.manual_seed(0)
    module = build(whose, model, img_size, **case).to(device)
    images = torch.randn(batch_size, 3, img_size, img_size, device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = module(images).float().square().mean()
        loss.backward()
        module.zero_grad(set_to_none=True)

    return step


def _peak_of(whose: str, *arguments: Any) -> int | None:
    """In a fresh process: returns the bytes that one step adds at its peak to what the model needs itself."""
    step = make_step(whose, *arguments)
    if arguments[-2] == "cuda":
        step()
    return peak_of(step, arguments[-2])


def peak_memory(*arguments: Any) -> int | None:
    """Returns the bytes of one step's peak above those before it, in a process of its own; None: no room for it."""
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_peak_of, *arguments).result()
    except (BrokenProcessPool, MemoryError):  # a CPU's process is killed
        return None
    except RuntimeError as error:
        if "out of memory" not in str(error).lower() and "can't allocate" not in str(error).lower():
            raise
        return None


def fastest(steps: Mapping[str, Callable[[], Callable[[], None]]], num_steps: int, device: str) -> dict[str, float]:
    """Returns the least seconds of each step by name, in turns; one after the other where they do not fit together.

    Args:
        steps: what makes each.
    """
    made: dict[str, Callable[[], None]] = {}
    try:
        made |= {name: make() for name, make in steps.items()}
        return {name: min(values) for name, values in in_turns(made, num_steps, device).items()}
    except torch.OutOfMemoryError:
        if len(steps) < 2:
            raise
    finally:
        made.clear()
        free_memory(device)
    return {name: fastest({name: make}, num_steps, device)[name] for name, make in steps.items()}


def compare_backbones(
    model: str, img_size: int, batch_size: int, num_steps: int, precision: str, device: str = "auto"
) -> None:
    """Prints a table: seconds and bytes of both in every case, and their ratios.

    Raises:
        ValueError: detectron2 is not installed, or a model that it does not know.
    """
    try:
        import detectron2  # noqa: F401
    except ImportError:
        raise UserError(
            "the backbone benchmark compares with detectron2, which is not installed (PyPI does not hold it): "
            "install it from its repository"
        ) from None
    device = make_fabric(precision, device).device.type
    where = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    title = f"{model}, {img_size} px, batch {batch_size}, {precision}, {where}, {torch.get_num_threads()} threads"
    rows = []
    for name, case in CASES.items():
        arguments = (model, img_size, batch_size, precision, device, case)
        # Before this process holds a model of its own, which would take the room.
        peaks = {who: peak_memory(who, *arguments) for who in ("ours", "detectron2")}
        makers = {who: partial(make_step, who, *arguments) for who, peak in peaks.items() if peak is not None}
        times = fastest(makers, num_steps, device)
        rows.append([name, *compared(times, 1.0, "{:.3f}"), *compared(peaks, 1e6, "{:.0f}")])
    print_table(f"forward + backward: {title}", "", HEADER, rows)


def compared(values: Mapping[str, float | None], unit: float, form: str) -> list[str]:
    """Returns the cells of ours, detectron2's and their ratio; what did not fit into memory says so."""
    ours, theirs = (values.get(who) for who in ("ours", "detectron2"))
    cells = [NO_ROOM if value is None else form.format(value / unit) for value in (ours, theirs)]
    return [*cells, "-" if ours is None or theirs is None else f"{ours / theirs:.2f}"]
