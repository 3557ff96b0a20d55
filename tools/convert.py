"""Converts ViT weights between projects; both models must give the same output before anything is written."""

import _path  # noqa: F401
import os
import sys
from pathlib import Path
from typing import Any

from splitmask_backbones.convert import FAMILIES, TARGETS
from splitmask_backbones.errors import UserError
from splitmask_backbones.registry import ENCODERS
from splitmask_backbones.values import parse_value
from tools import cli

EXAMPLES = """examples:
  python tools/convert.py deit_small.pth deit_small.safetensors
  python tools/convert.py dino_vits16.pth dino.safetensors --from dino
  python tools/convert.py model_final.pth vitdet.safetensors --from vitdet
  python tools/convert.py runs/mine encoder_so_far.safetensors              (a run folder: its newest checkpoint)
  python tools/convert.py encoder.safetensors vitdet_init.pth --to detectron2
  python tools/convert.py encoder.safetensors encoder.onnx --to onnx --img-size 224

A run of train_det, train_seg or train_cls gives its encoder alone; the whole model as a graph: tools/export.py.
DST: splitmask and timm .safetensors, detectron2 and mmseg .pth, hf a folder, onnx .onnx, exported (torch.export) .pt2.
A graph takes normalised images of one size in batches of any, and gives the tokens of `forward`.
A bare encoder file of timm, DeiT, DINO, MAE and MoCo v3 looks alike: --from dino makes positions resize as DINO does.
A report goes beside DST.
mmseg's VisionTransformer takes its file with patch_bias=True."""


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/convert.py", description=__doc__, epilog=EXAMPLES)
    parser.add_argument("source", metavar="SRC", help="a weights file, a Hugging Face folder, or a run folder")
    parser.add_argument("destination", metavar="DST", help="what to write")
    families = "|".join(("auto", *FAMILIES))
    one_of = cli.choice("family", ("auto", *FAMILIES))
    parser.add_argument("--from", type=one_of, dest="from_", default="auto", metavar=families, help="(default auto)")
    one_of = cli.choice("target", TARGETS)
    parser.add_argument("--to", type=one_of, default="splitmask", metavar="|".join(TARGETS), help="(default splitmask)")
    encoders = f"the encoder that SRC must be: {', '.join(ENCODERS)}"
    parser.add_argument("--model", type=cli.choice("model", ENCODERS), metavar="NAME", help=encoders)
    text = "what SRC does not show, as an argument of VisionTransformer: window_size=14"
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help=text)
    text = "of the images that a graph takes (--to onnx, exported; default: the encoder's)"
    parser.add_argument("--img-size", type=cli.image_size, metavar="P|H,W", help=text)
    parser.add_argument("--step", type=cli.positive_int, metavar="N", help="of a run folder's checkpoint")
    parser.add_argument("--best", action="store_true", help="of a run folder that evaluated on its way (eval_every=N)")
    cli.add_device(parser, "where both models are compared: the CPU, whatever there is (default auto)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    parser.add_argument("--allow-partial", action="store_true", help="go on with missing or unexpected keys")
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.device == "cuda":
        raise UserError("--device cuda: both models are compared on the CPU, in float32: omit it")
    if args.best and args.step is not None:
        raise UserError("--best and --step exclude each other: both choose a run's weights")
    overrides = dict(_parse(text) for text in args.set)
    from splitmask_backbones.convert.conversion import convert

    cli.start_log()
    how = {
        name: getattr(args, name)
        for name in ("from_", "to", "model", "step", "overwrite", "allow_partial", "best", "img_size")
    }
    done = convert(args.source, args.destination, overrides=overrides, **how)
    _show(done, Path(os.path.abspath(args.destination)))
    return 0


def _parse(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set {text} is not key=value: write for example --set window_size=14")
    parsed = parse_value(key, value)
    # One block is a list of one, as `0,1` is a list of two.
    return key, (parsed,) if key == "window_block_indexes" and isinstance(parsed, int) else parsed


def _show(done: Any, destination: Path) -> None:
    """Prints differences and report, and writes both as JSON beside the destination."""
    from tools.common.load_table import tell

    for side, difference in done.differences.items():
        shown = "not compared" if difference is None else f"largest difference {difference:.2g}"
        sys.stdout.write(f"{side}: {shown} (tolerance {done.tolerance:.2g})\n")
    path = destination.with_name(destination.name + ".report.json")
    proof = {name: getattr(done, name) for name in ("family", "sha256", "target", "differences", "tolerance")}
    tell(done.report, path, f"{done.report.path}: {done.family} -> {done.target}", proof)
    sys.stdout.write("".join(f"{remark}\n" for remark in done.remarks))
    sys.stdout.write(f"wrote {destination}, report {path}\n")


if __name__ == "__main__":
    cli.run(main)
