"""The whole way on a small machine: pre-train with SplitMask, then Mask R-CNN and UperNet from random init and from it.

Without --data it makes its own images. What was interrupted continues; what is finished is not done again.
"""

import _path  # noqa: F401
from pathlib import Path

from splitmask_backbones.run_files import TABLE
from tools import cli


def build_parser() -> cli.Parser:
    """Returns the parser."""
    parser = cli.Parser(prog="tools/demo.py", description=__doc__)
    about = "COCO-layout folder: train*/, val*/, annotations/instances_*.json (default: synthetic)"
    parser.add_argument("--data", metavar="ROOT", help=about)
    parser.add_argument("--output", default="runs/demo", metavar="DIR", help="default runs/demo")
    for name, what in (("pretrain", "pre-training"), ("det", "each detector"), ("seg", "each segmentor")):
        about = f"steps of {what} (default: the recipe's)"
        parser.add_argument(f"--{name}-steps", type=cli.positive_int, metavar="N", help=about)
    cli.add_device(parser)
    for name, value, what in (("seed", 0, "of every job"), ("workers", 2, "data processes")):
        about = f"{what} (default {value})"
        parser.add_argument(f"--{name}", type=cli.non_negative_int, default=value, metavar="N", help=about)
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    args = build_parser().parse_args(argv)
    from tools.demos.inputs import make_inputs, open_folder, own_inputs
    from tools.demos.plan import KNOWN, UNKNOWN, demo_jobs, save_pictures, write_table
    from tools.running.executor import Executor, carry_out, open_plan

    output = Path(args.output)
    num_steps = {"pretrain": args.pretrain_steps, "det": args.det_steps, "seg": args.seg_steps}
    values = {
        "data": None if args.data is None else str(Path(args.data).resolve()),
        **{f"{name}_steps": number for name, number in num_steps.items()},
        "seed": args.seed,
    }
    config = {"command": "demo", "values": values, "free": {"workers": args.workers}}
    with open_plan(output, TABLE, config) as folder:
        data = output / "data"
        found = None if args.data is None else open_folder(args.data, data)  # a wrong one leaves nothing behind
        folder.write_config(config)
        folder.start()
        inputs = make_inputs(data) if found is None else own_inputs(found, data)
        jobs = demo_jobs(output, inputs, num_steps, args.seed, args.workers)
        executor = Executor(output, live=True, extra=["--debug"] if args.debug else [], device=args.device)
        code = carry_out(executor, jobs)
        if code == 0:
            save_pictures(output, inputs.token_images)
            known = KNOWN if found is None and not any(num_steps.values()) else UNKNOWN
            write_table(output, executor.seconds, inputs.note, known)
    return code


if __name__ == "__main__":
    cli.run(main)
