"""tools/cli.py and tools/_path.py: the import path, nearest names, and the one error line."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pretrain.data.pixel_limit import VARIABLE
from pretrain.recipes import Recipe
from splitmask_backbones.errors import UserError, nearest
from tests.helpers.paths import TOOLS
from tools import cli


def test_the_package_and_not_the_script_is_imported():
    code = "import _path, pretrain, sys; print(pretrain.__file__); import pretrain.recipes"
    result = subprocess.run([sys.executable, "-c", code], cwd=TOOLS, capture_output=True, text=True, check=True)
    assert Path(result.stdout.strip()) == TOOLS.parent / "pretrain/__init__.py"


def test_nearest():
    assert nearest("vit_smol", ["vit_tiny", "vit_small"]).startswith("did you mean 'vit_small'?")
    assert "choose from a, b" in nearest("zzz", ["b", "a"])


def test_a_range_may_begin_below_zero():
    tool = cli.Parser(prog="tool")
    cli.add_selection(tool)
    for words in (["--range", "-1000,400"], ["--range=-1000,400"]):
        assert tool.parse_args(words).range == (-1000, 400)
    assert tool.parse_args(["--range", "0,400"]).range == (0, 400)
    with pytest.raises(UserError, match="expected one argument"):
        tool.parse_args(["--range", "--include", "x"])


def test_none_takes_a_recipes_value_away_and_is_no_option_that_is_missing():
    tool = cli.Parser(prog="tool")
    cli.add_values(tool, Recipe)
    given = cli.given_values(tool.parse_args(["--qk-limit", "none", "--seed", "3"]), Recipe)
    assert given == {"qk_limit": None, "seed": 3}
    with pytest.raises(UserError, match="whole number, got 'none'"):
        tool.parse_args(["--seed", "none"])


def test_a_switch_of_a_recipe_says_its_two_words():
    tool = cli.Parser(prog="tool")
    cli.add_values(tool, Recipe)
    words = " ".join(tool.format_help().split())
    assert "--strong-augment true|false" in words
    assert (
        f"(default {'true' if Recipe().freeze_patch_embed else 'false'})"
        in words.partition("--freeze-patch-embed true|false ")[2]
    )
    assert cli.given_values(tool.parse_args(["--strong-augment", "true"]), Recipe) == {"strong_augment": True}


@pytest.mark.parametrize(
    ("name", "best"),
    [
        ("optimizer.lr", "lr"),  # did you mean 'img_size'?
        ("Optimizer.LR", "lr"),
        ("lr.x", "lr"),
        ("solver.base_lr", "lr"),
        ("learning_rate", "lr"),
        ("train.batch_size", "batch_size"),
        ("anchor_sizes.0", "anchor_sizes"),
        ("rois_per_img", "rois_per_image"),
        ("scale_rnge", "scale_range"),
    ],
)
def test_the_nearest_of_a_dotted_name_ends_as_it_does(name, best):
    names = ["lr", "img_size", "batch_size", "scale_range", "anchor_sizes", "rois_per_image", "positions", "encoder"]
    assert nearest(name, names).startswith(f"did you mean '{best}'?")
    dotted = ["optim_wrapper.optimizer.lr", "model.decode_head.num_classes", "log_every", "steps", "test_pipeline.1"]
    assert nearest("lr.x", dotted).startswith("did you mean 'optim_wrapper.optimizer.lr'?")
    assert nearest("model.decode_head.nclasses", dotted).startswith("did you mean 'model.decode_head.num_classes'?")
    assert nearest("steps.1", dotted).startswith("did you mean 'steps'?")


def parser():
    parser = cli.Parser(prog="tool")
    parser.add_argument("--steps", type=cli.positive_int)
    parser.add_argument("--fraction", type=cli.fraction)
    parser.add_argument("--lr", type=cli.positive_float)
    parser.add_argument("--data", required=True)
    return parser


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["--stesp", "3"], "unknown option '--stesp': did you mean '--steps'"),
        (["--data", "x", "--step", "3"], "unknown option '--step'"),  # no abbreviations
        (["--data", "x", "--steps", "0"], "--steps: must be at least 1, got 0"),
        (["--data", "x", "--steps", "many"], "--steps: must be a whole number, got 'many'"),
        (["--data", "x", "--fraction", "1.5"], "between 0 and 1"),
        (["--data", "x", "--lr", "inf"], "positive number"),
        (["--data", "x", "more"], "'more' is one argument too many"),
        ([], "required: --data"),
    ],
)
def test_option_errors(argv, match):
    with pytest.raises(UserError, match=match):
        parser().parse_args(argv)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UserError("a  b\nc"), "error: a  b c\n"),
        (OSError(errno.ENOSPC, "No space left on device", "/data/x"), "error: /data/x: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/data/x"), "error: /data/x: the file system is read-only"),
        (RuntimeError("CUDA out of memory. Tried"), "error: out of memory: use a smaller --batch-size"),
        (KeyError("x"), "error: KeyError: 'x'; run again with --debug"),
    ],
)
def test_one_error_line(error, text, capsys):
    cli.print_error(error, debug=False)
    lines = capsys.readouterr().err
    assert lines.startswith(text)
    assert lines.count("\n") == 1


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("return 0", 0),
        ("return None", 0),
        ("raise ValueError('x')", 2),
        ("raise KeyboardInterrupt", 130),
        ("raise SystemExit(143)", 143),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", 143),
    ],
)
def test_exit_codes(body, code):
    source = f"import _path\nfrom tools import cli\ndef main(argv):\n    {body}\ncli.run(main)"
    result = subprocess.run([sys.executable, "-c", source], cwd=TOOLS, capture_output=True, text=True, check=False)
    assert result.returncode == code
    assert "Traceback" not in result.stderr


def test_an_output_that_nobody_reads_is_told_in_one_line():
    source = "import _path\nfrom tools import cli\ndef main(argv):\n    while True: print('x' * 1000)\ncli.run(main)"
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, cwd=TOOLS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()  # as `| head -1` does
        said = process.stderr.read()
    assert process.returncode == 2
    assert said == "error: what reads the output has gone: send the output to a file, then --resume\n"


def test_a_tilde_is_the_home_folder_wherever_a_path_begins(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere/me")
    given = ["~", "~/run", "--output=~/run", "coco=~/coco", "~/a.json+~/images", "a~/b", "x~", "--lr=~", "~~/x"]
    expected = ["/somewhere/me", "/somewhere/me/run", "--output=/somewhere/me/run", "coco=/somewhere/me/coco"]
    expected += ["/somewhere/me/a.json+/somewhere/me/images", "a~/b", "x~", "--lr=/somewhere/me", "~~/x"]
    assert [cli.with_home(text) for text in given] == expected
    assert cli.with_home("~nobody-of-that-name/x") == "~nobody-of-that-name/x"
    parser = cli.Parser(prog="tool")
    parser.add_argument("--output")
    assert parser.parse_args(["--output", "~/run"]).output == "/somewhere/me/run"


def test_the_limit_of_pixels_holds_for_processes_that_are_started(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # both are put back after the test
    monkeypatch.setenv(VARIABLE, "")
    parser = cli.Parser(prog="tools/x.py")
    cli.add_bad_fraction(parser)
    with pytest.raises(UserError, match="--max-pixels.*must be at least 1"):
        parser.parse_args(["--max-pixels", "0"])
    assert parser.parse_args(["--max-pixels", "5000"]).max_pixels == 5000
    code = "from pretrain.data.pixel_limit import apply_pixel_limit; print(apply_pixel_limit())"
    done = subprocess.run([sys.executable, "-c", code], cwd=TOOLS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "5000" and Image.MAX_IMAGE_PIXELS == 5000
