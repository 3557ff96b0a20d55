"""Blocks of code in README and docs, and the small data that makes them run.

A comment in front of a block says how it is executed; its parts are separated by "; ":

    run            execute it (python: the default; bash: its commands run instead of being parsed)
    run: MARKER    under a marker of pytest, such as detectron2
    file: NAME     it is the file NAME, for the blocks below that name it as given; not executed without `run`
    given: A B     what has to lie in the folder, or stand in the namespace: a key of GIVEN, or a `file` of the page
    small: a -> b  replace a by b, which must be there; more replacements follow
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from splitmask_backbones.convert import convert
from tests.helpers import cls_data, det_data, seg_data
from tests.helpers.paths import ROOT

PAGES = ["README.md", "CONTRIBUTING.md", *sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/**/*.md"))]


@dataclass
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    code: str
    run: str | None = None
    file: str | None = None
    given: list[str] = field(default_factory=list)
    small: list[tuple[str, str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Returns where it stands."""
        return f"{self.page}:{self.line}"

    def made_small(self) -> str:
        """Returns the code with the replacements made."""
        code = self.code
        for old, new in self.small:
            assert old in code, f"{self.name}: nothing to replace: {old}"
            code = code.replace(old, new)
        return code


def blocks_of(page: str) -> list[Block]:
    """Returns the blocks of a page in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"(?:^<!-- ([^\n]*) -->\n)?^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        block = Block(page, text[: match.start(3)].count("\n") + 1, match[2], match[3])
        _read_comment(block, match[1] or "")
        found.append(block)
    return found


def _read_comment(block: Block, comment: str) -> None:
    for part in filter(None, comment.split("; ")):
        key, _, rest = part.partition(": ")
        if key == "run":
            block.run = rest
        elif key == "file":
            block.file = rest
        elif key == "given":
            block.given = rest.split()
        else:
            old, arrow, new = part.removeprefix("small: ").partition(" -> ")
            assert arrow, f"{block.name}: not understood: {part}"
            block.small.append((old.strip('"'), new.strip('"')))


def prepare(block: Block, folder: Path) -> dict[str, Any]:
    """Makes what the block is given in `folder`, which is the current one; returns its namespace."""
    files = {other.file: other for other in blocks_of(block.page) if other.file}
    for other in files.values():
        if other.language != "python" or other.file in block.given:
            (folder / str(other.file)).write_text(other.made_small(), encoding="utf-8")
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for name in block.given:
        if name in files:
            continue
        if name == "images":
            namespace["images"] = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        elif name.endswith("encoder.safetensors"):
            _write_encoder(folder / name)
        elif name == "encoder.onnx":
            _write_encoder(folder / "encoder.safetensors")
            convert(folder / "encoder.safetensors", folder / name, to="onnx")
        elif name == "runs/embedded":
            _embed(folder)
        elif name == "runs/mine_det":
            _train_detector(folder / name, folder / "image.jpg")
        elif name == "detector.onnx":
            _train_detector(folder / "runs/mine_det", folder / "image.jpg")
            _export(folder / "runs/mine_det", folder / name)
        else:
            DATA[name](folder / name)
    namespace["tiny"] = tiny_detectron2
    return namespace


def _write_encoder(path: Path) -> None:
    from splitmask_backbones import create_encoder, save_encoder

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    save_encoder(create_encoder("vit_tiny", img_size=64), path)


def _embed(folder: Path) -> None:
    from tools.embed import main

    _write_encoder(folder / "encoder.safetensors")
    DATA["MY_IMAGES"](folder / "MY_IMAGES")
    paths = [
        "--data",
        folder / "MY_IMAGES",
        "--weights",
        folder / "encoder.safetensors",
        "--output",
        folder / "runs/embedded",
    ]
    assert main([*map(str, paths), "--workers", "0"]) == 0


def _train_detector(output: Path, picture: Path) -> None:
    """Writes a run of train_det, and a picture for it."""
    from tests.helpers import in_process, small_runs
    from tools.train_det import main

    data = small_runs.make_inputs("train_det", output.parent / "data")
    words = small_runs.command("train_det", data, output, "--steps", 1, "--workers", 0)
    assert in_process.run_tool(main, *words[2:]).returncode == 0
    Image.new("RGB", (80, 60), "gray").save(picture)


def _export(run: Path, file: Path) -> None:
    from tests.helpers.in_process import run_tool
    from tools.export import main

    assert run_tool(main, run, file, "--img-size", "48,64").returncode == 0


DATA = {
    "MY_IMAGES": lambda folder: det_data.write_split(folder, "pictures", det_data.coco_json(8)),
    "MY_COCO": det_data.write_root,
    "MY_LABELS": lambda folder: seg_data.make_data(folder, size=(72, 64), values=(0, 1)),
    "MY_CLASSES": cls_data.write_root,
}


def tiny_detectron2(cfg: Any) -> Any:
    """Returns a detectron2 config whose images and heads are small, for a step in a second."""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 20
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 10
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 8
    return cfg
