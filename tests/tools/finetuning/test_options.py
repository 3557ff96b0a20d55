"""What the shared options of the fine-tuning tools say together."""

from dataclasses import FrozenInstanceError

import pytest

from pretrain.training.cores import auto_workers
from pretrain.training.options import RunOptions
from tools import cli
from tools.finetuning.options import FinetuneOptions, add_options, finetune_options


def parse(*argv: str) -> FinetuneOptions:
    parser = cli.Parser(prog="tool")
    cli.add_bad_fraction(parser)
    add_options(parser, "draw")
    return finetune_options(vars(parser.parse_args(list(argv))), "detector")


def test_a_new_run_is_trained(tmp_path):
    options = parse("--output", str(tmp_path / "new"), "--weights", "none", "--save-every", "7")
    assert options.trains and options.weights is None and not options.resume
    assert (options.workers, options.save_every, options.log_every, options.max_bad_fraction) == (
        auto_workers(),
        7,
        20,
        0.01,
    )
    weights = tmp_path / "e.safetensors"
    with pytest.raises(ValueError, match=r"e\.safetensors does not exist: the folder .* is empty"):
        parse("--output", "new", "--weights", str(weights))
    weights.touch()
    assert parse("--output", "new", "--weights", str(weights)).weights == weights
    assert isinstance(options, RunOptions) and not options.deterministic
    assert parse("--output", "new", "--weights", "none", "--deterministic").deterministic
    with pytest.raises(FrozenInstanceError):
        options.workers = 3


def test_a_run_that_is_there_is_used(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run, picture = ["--output", str(tmp_path)], ["--predict", str(tmp_path)]
    assert not parse(*run, "--eval-only").trains
    assert not parse(*run, *picture, "--best").trains
    assert parse(*run, *picture, "--resume", "--weights", "none").trains
    assert parse("--output", str(tmp_path / "new"), *picture, "--weights", "none").trains  # trained first


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--weights FILE|none is needed"),
        (["--eval-only"], "holds no run: train a detector first"),
        (["--eval-only", "--resume"], "--eval-only and --resume exclude each other"),
        (["--weights", "none", "--best"], "--best goes with --eval-only or --predict"),
        (["--weights", "none", "--predict", "nowhere"], "--predict nowhere does not exist"),
    ],
)
def test_what_does_not_fit_together_is_said(tmp_path, argv, message):
    with pytest.raises(ValueError) as caught:
        parse("--output", str(tmp_path / "new"), *argv)
    assert message in str(caught.value)
