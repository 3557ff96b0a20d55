"""Fine-tunes Mask R-CNN on a pre-trained encoder with COCO-format data: writes results.json into --output."""

import _path  # noqa: F401
from pathlib import Path

from det_configs.common.recipe import FIELDS
from tools import cli
from tools.detection.config import CONFIG_DIR, given_values, load_config
from tools.detection.engines import ENGINES, choose_engine
from tools.finetuning.config_file import config_names
from tools.finetuning.options import add_options, finetune_options

PLACES = ("data", "val", "train_json", "train_images", "val_json", "val_images")


def build_parser() -> cli.Parser:
    """Returns the parser; recipe values are `key=value` pairs, the common ones are options too."""
    values = "\n".join(
        f"  {name:24}{field.metadata['help']} (default {field.default})" for name, field in FIELDS.items()
    )
    parser = cli.Parser(
        prog="tools/train_det.py",
        usage="tools/train_det.py CONFIG --data ROOT --weights FILE|none --output DIR [options] [key=value ...]",
        description=__doc__,
        epilog=f"configs: {', '.join(config_names(CONFIG_DIR))}\n\nrecipe values for key=value (a config's own value "
        f"wins over the default):\n{values}",
    )
    parser.add_argument("config", metavar="CONFIG", help="a file of det_configs/, or your own")
    data = parser.add_argument_group("data (COCO format)")
    data.add_argument(
        "--data",
        metavar="ROOT",
        help="folder with train*/, val*/ and annotations/instances_*.json, or TRAIN.json+DIR with --val",
    )
    data.add_argument("--val", metavar="VAL.json+DIR", help="validation data, wins over ROOT's")
    for split in ("train", "val"):
        data.add_argument(f"--{split}-json", metavar="FILE", help=f"{split} annotations, with --{split}-images")
        data.add_argument(f"--{split}-images", metavar="DIR", help=f"folder of the {split} images")
    cli.add_bad_fraction(data)
    add_options(parser, "draw boxes and masks")
    parser.add_argument(
        "--engine", default="auto", metavar="|".join(ENGINES), help="(default auto: detectron2 if installed)"
    )
    recipe = parser.add_argument_group("recipe values as options (they win over config and key=value)")
    for name, kind in (
        ("steps", cli.positive_int),
        ("epochs", cli.positive_int),
        ("batch-size", cli.positive_int),
        ("img-size", cli.positive_int),
        ("lr", cli.positive_float),
        ("seed", cli.non_negative_int),
        ("labels", cli.positive_float),
    ):
        help = FIELDS[name.replace("-", "_")].metadata["help"]
        recipe.add_argument(f"--{name}", type=kind, metavar=name.upper().split("-")[-1], help=help)
    recipe.add_argument("--precision", metavar="32|bf16", help=FIELDS["precision"].metadata["help"])
    return parser


def main(argv: list[str]) -> int:
    """Runs the tool; returns the exit code."""
    parser = build_parser()
    argv, overrides = cli.take_overrides(parser, argv)
    args = parser.parse_args(argv)
    base = load_config(args.config)
    given = given_values(vars(args), overrides)
    # Option errors come before anything heavy is imported or created.
    recipe = base.override(given)
    if not (args.resume or args.eval_only or args.predict):  # a run that is there has a recipe of its own
        choose_engine(args.engine, recipe)
    options = finetune_options(vars(args), "detector")
    places = {name: getattr(args, name) for name in PLACES}
    from tools.detection.splits import SPLITS, locate

    if options.trains or options.eval_only:
        locate(**places, needed=SPLITS if options.trains else ("val",))
    from tools.detection.task import DetectionTask
    from tools.finetuning.run import run

    run(DetectionTask(options, Path(args.config).stem, base, given, places, args.engine))
    return 0


if __name__ == "__main__":
    cli.run(main)
