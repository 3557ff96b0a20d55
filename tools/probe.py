"""Measures a frozen encoder layer by layer, with kNN and linear probes: writes results.json into --output."""

import _path  # noqa: F401
from importlib.util import find_spec
from pathlib import Path

from pretrain.training.processes import processes
from splitmask_backbones.errors import UserError
from tools import cli
from tools.classification.data import DataOptions, add_data_options
from tools.classification.probe_recipe import ProbeRecipe

EPILOG = """Each image is read once: the features of all layers (means of the patch tokens before the final norm) are
kept in DIR/features while the probes are trained. --resume goes on where a run was stopped."""


def build_parser() -> cli.Parser:
    """Returns the parser: one option for every value of a `ProbeRecipe`."""
    parser = cli.Parser(prog="tools/probe.py", description=__doc__, epilog=EPILOG)
    add_data_options(parser, required=True)
    parser.add_argument(
        "--weights", required=True, metavar="FILE|none", help="encoder.safetensors, or none for random initialisation"
    )
    cli.add_output(parser)
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    cli.add_rehearse(parser)
    cli.add_device(parser)
    cli.add_deterministic(parser)
    parser.add_argument("--keep-features", action="store_true", help="leave DIR/features where it is at the end")
    cli.add_workers(parser)
    cli.add_values(parser, ProbeRecipe)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    given = cli.given_values(args, ProbeRecipe)
    recipe = ProbeRecipe().override(given)
    if processes().world_size > 1:
        raise UserError("tools/probe.py runs in one process: start it without torchrun")
    if find_spec("timm") is None:
        raise UserError("timm is not installed: pip install timm, or the project with its extra 'classification'")
    from tools.classification.probe_run import ProbeOptions, probe

    options = ProbeOptions.of(
        vars(args),
        output=cli.rehearsal_output(Path(args.output), args.rehearse, args.resume),
        save_every=0,  # of the linear probes, by their length
        log_every=0,
        weights=None if args.weights == "none" else Path(args.weights),
        places=DataOptions.of(vars(args)),
    )
    probe(options, recipe, given)
    return 0


if __name__ == "__main__":
    cli.run(main)
