"""Writes a trained detector, segmentor or classifier as one ONNX file, which runs without this project and torch.

The file is run, and must answer as the model does, before it is left there.
"""

import _path  # noqa: F401
from pathlib import Path

from splitmask_backbones.errors import UserError
from tools import cli

EPILOG = """A graph takes `images`, float32 (B, 3, H, W), RGB in [0, 1], of one size: resize (and pad, right and below)
images to it. Padding is seen as image: only of images that fill the size are the answers those of the evaluation, so
export a file for each shape that you have. It gives
  of a detector     boxes (N, 4) x1, y1, x2, y2 in pixels of the image, labels (N,) from 0, scores (N,), and masks
                    (N, 28, 28), the shares of the mask in its box; one image at a time. Its size is by default
                    that of images in landscape: others are fitted into it smaller than the evaluation has them
  of a segmentor    labels (1, H, W) from 0, and the share of each, scores (1, H, W); one image at a time, as a whole:
                    name the size that your images are evaluated at
  of a classifier   scores (B, K), which add up to 1
Size and names of the classes are in the file's metadata, as JSON under splitmask_backbones.json. An encoder alone, for
tokens of any image: tools/convert.py --to onnx.

examples:
  python tools/export.py runs/mine_det detector.onnx --img-size 640
  python tools/export.py runs/mine_seg segmentor.onnx --img-size 480,640"""
SUFFIX = ".onnx"


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/export.py", description=__doc__, epilog=EPILOG)
    parser.add_argument("run", metavar="RUN", help="--output of train_det, train_seg or train_cls")
    parser.add_argument("file", metavar="FILE.onnx", help="what to write")
    size = "of the images that it takes, in pixels (default: that of the run's evaluation, where it has one)"
    parser.add_argument("--img-size", type=cli.image_size, metavar="P|H,W", help=size)
    parser.add_argument("--best", action="store_true", help="the best evaluated weights (eval_every=N keeps them)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    file = Path(args.file)
    if file.suffix != SUFFIX:
        raise UserError(f"{file} must end in {SUFFIX}")
    if file.exists() and not args.overwrite:
        raise UserError(f"{file} exists: choose another name, or add --overwrite")
    if not file.absolute().parent.is_dir():
        raise UserError(f"{file.parent} is no folder: make it first")
    cli.start_log()
    from splitmask_backbones.files import write_atomically
    from tools.finetuning.graph import about_of, onnx_of
    from tools.predictor import load_predictor

    predictor = load_predictor(args.run, "cpu", args.best)
    size = args.img_size or predictor.task.graph_size()
    graph = predictor.task.graph(predictor.model)
    about = about_of(predictor.task.command, predictor.class_names, size, predictor.task.prepared())
    content, compared = onnx_of(graph, predictor.model.encoder, size, about)
    write_atomically(file, content)
    proof = "its answers on two images are the model's" if compared else "like the model it finds nothing in noise"
    made = f"{predictor.source} of {args.run}, images of {size[0]} x {size[1]} (H x W), {len(content) / 1e6:.1f} MB"
    print(f"wrote {file}: {made}; {proof}")
    return 0


if __name__ == "__main__":
    cli.run(main)
