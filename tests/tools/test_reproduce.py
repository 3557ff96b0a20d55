"""tools/reproduce.py: the plan in words, errors, another run's folder, a row to its table."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.in_process import run_tool
from tests.helpers.paths import ROOT
from tools import reproduce
from tools.running.executor import Executor, JobError
from tools.running.job import Job


def tool(*argv: str) -> subprocess.CompletedProcess[str]:
    return run_tool(reproduce.main, *argv)


def test_dry_run_shows_the_plan_and_makes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = tool("coco/vit_small_splitmask_coco", "--data", "COCO", "--gpus", "8", "--output", str(output), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not output.exists()
    assert (
        "1. pretrain/coco_splitmask_vit_small: to do\n   torchrun --standalone --nproc-per-node=8 tools/pretrain.py "
        in done.stdout
    )
    assert f"--weights {output}/pretrain/coco_splitmask_vit_small/encoder.safetensors" in done.stdout
    assert re.search(
        r"GPU hours: about \d+ \(pretrain \d+, train_det \d+\), from counted operations at \d+ TFLOP/s", done.stdout
    )
    assert "data set coco: COCO is not a folder" in done.stdout
    (output / "pretrain/coco_splitmask_vit_small").mkdir(parents=True)
    (output / "pretrain/coco_splitmask_vit_small/encoder.safetensors").write_bytes(b"")
    (output / "det/coco_3x_vit_small_splitmask_coco_seed0").mkdir(parents=True)
    (output / "det/coco_3x_vit_small_splitmask_coco_seed0/config.json").write_text("{}")
    again = tool("coco/vit_small_splitmask_coco", "--data", "COCO", "--output", str(output), "--dry-run").stdout
    assert "1. pretrain/coco_splitmask_vit_small: done, skipped" in again
    assert "2. det/coco_3x_vit_small_splitmask_coco_seed0: begun, continues" in again
    assert "--resume" in again and "1 of 2 jobs to do" in again


@pytest.mark.parametrize("words", [[], ["--data", "{empty}"]], ids=["no option", "nothing there"])
def test_the_study_is_planned_without_data(tmp_path: Path, words: list[str]) -> None:
    """--dry-run ended with an error, that of the other tables did not."""
    words = [word.replace("{empty}", str(tmp_path)) for word in words]
    output = tmp_path / "out"
    done = tool("small", *words, "--size", "cpu", "--output", str(output), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "needed from you:" in done.stdout and "holds no folder nuclei" in done.stdout
    assert done.stdout.count(": to do") > 4 and not output.exists()
    planned = tool("coco/vit_small_random", "--output", str(output), "--dry-run")
    assert planned.returncode == 0 and "data set coco: <coco> is not a folder" in planned.stdout


@pytest.mark.parametrize(
    ("size", "has_bf16", "argv", "expected"),
    [
        ("cpu", True, [], {"bf16"}),
        ("cpu", None, [], {"32"}),
        ("cpu", True, ["--precision", "32"], {"32"}),
        ("gpu", True, [], {"32", "bf16"}),
    ],
)
def test_the_study_takes_bf16_on_a_cpu_that_has_it(
    size: str,
    has_bf16: bool | None,
    argv: list[str],
    expected: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pretrain.training.distributed.cpu_has_bf16", lambda: has_bf16)
    argv = ["small", "--size", size, "--rows", "full", "--output", str(tmp_path / "out"), "--dry-run", *argv]
    assert reproduce.main(argv) == 0
    assert set(re.findall(r"--precision (\S+)", capsys.readouterr().out)) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["coca", "--data", "x"], "unknown table 'coca': did you mean 'coco'?"),
        (["smal", "--data", "x"], "unknown table 'smal': did you mean 'small'?"),
        (["coco/vit_small_splitmask", "--data", "x"], "row of table coco 'vit_small_splitmask': did you mean"),
        (["small/ful", "--data", "x"], "unknown row of the study 'ful': did you mean 'full'?"),
        (["small", "--data", "x", "--size", "tpu"], "argument --size: unknown size 'tpu'"),
        (["small", "--data", "{empty}", "--size", "cpu"], "holds no folder nuclei"),
        (["coco"], "--data ROOT is missing"),
        (["coco", "--data="], "--data is empty"),
        (["small", "--data", "{empty}", "--gpus", "2"], "--tflops and --rehearse go with the tables"),
        (["coco", "--data", "{empty}", "--size", "cpu"], "--size, --rows, --sets and --labels go with small"),
        (["small", "--data", "{empty}", "--labels", "10"], "--labels 10 must be shares above 0 and up to 1"),
        (["coco", "--data", "{empty}", "--precision", "16"], "argument --precision: unknown precision '16'"),
        (["coco", "--data", "{empty}", "--weights", "deit=x"], "unknown --weights name 'deit': did you mean 'deit_"),
        (["coco/vit_small_deit", "--data", "{empty}"], "DEIT's published vit_small: give --weights deit_small=FILE"),
        (["coco/vit_small_random", "--data", "{empty}/no"], "data set coco: {empty}/no is not a folder"),
        (["coco", "--data", "{empty}", "--pretrain-options", "--stps 3"], "unknown option '--stps'"),
        (["coco", "--data", "{empty}", "--train-det-options", "'"], "check the quotation marks"),
        (["coco", "--data", "coco=a", "--data", "coco=b"], "--data coco is given twice: a and b"),
        (["coco", "--data", "x", "--weights", "deit_small=a", "--weights", "deit_small=b"],
         "--weights deit_small is given twice: a and b"),
        (["small", "--data", "x", "--rows", "random", "--weights", "imagenet=a"],
         "--weights imagenet=a is for the row imagenet: add it to --rows"),
        (["small", "--data", "x", "--rows", "ful"], "--rows: unknown row of the study 'ful'"),
        (["coco", "--data", "{empty}", "--dryrun"], "unknown option '--dryrun': did you mean '--dry-run'?"),
    ],
)  # fmt: skip
def test_errors_are_one_line(tmp_path: Path, argv: list[str], message: str) -> None:
    done = tool(*(text.format(empty=tmp_path) for text in argv), "--output", str(tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: "), done.stderr
    assert message.format(empty=tmp_path) in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_empty_output_is_refused(tmp_path: Path) -> None:
    done = tool("coco", "--data", str(tmp_path), "--output", "")
    assert (done.returncode, done.stderr) == (2, "error: --output is empty: name a folder\n")


def test_shares_that_one_name_stands_for_are_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["small", "--size", "cpu", "--rows", "random", "--sets", "nuclei", "--seeds", "1", "--dry-run"]
    assert reproduce.main([*argv, "--labels", "0.33333331,0.33333334", "--output", str(tmp_path / "out")]) == 0
    assert re.findall(r"--labels (\S+)", capsys.readouterr().out) == ["0.333333"]


def test_another_runs_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "coco"
    root.mkdir()
    output = tmp_path / "out"
    output.mkdir()
    (output / "config.json").write_text('{"command": "pretrain"}')
    done = tool("coco/vit_small_random", "--data", str(root), "--output", str(output))
    assert done.returncode == 2 and "holds another run" in done.stderr
    assert (output / "config.json").read_text() == '{"command": "pretrain"}'


@pytest.mark.slow
def test_a_row_runs_to_its_table(tmp_path: Path) -> None:
    """A row of the COCO table with the real tools, a few steps on pictures made here."""
    from tests.helpers.det_data import write_root

    root, output = write_root(tmp_path / "coco"), tmp_path / "out"
    small = "--steps 2 --batch-size 4 --img-size 64 --vocab-size 64 --log-every 1"
    heads = "out_channels=16 box_head_width=16 mask_head_width=16 mask_head_convs=1 rpn_post_nms_test=20"
    argv = ["coco/vit_small_splitmask_coco", "--data", str(root), "--output", str(output), "--workers", "0"]
    argv += ["--precision", "32", "--pretrain-options", small]
    argv += ["--train-det-options", f"--steps 2 --batch-size 2 --img-size 64 --engine torchvision {heads}"]
    done = tool(*argv)
    assert done.returncode == 0, done.stderr + done.stdout
    text = (output / "table.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| ViT-S SplitMask, COCO"))
    assert row.startswith("| ViT-S SplitMask, COCO | paper | 45.3 |")
    assert "pre-training: 2 steps in place of 3,000 epochs" in text
    assert "2 steps in place of 36 epochs" in text and "out_channels 16 in place of 256" in text
    assert (output / "table.csv").read_text().count("vit_small_splitmask_coco,") == 6
    again = tool(*argv)
    assert again.returncode == 0 and "0 of 2 jobs to do" in again.stdout and "$ python" not in again.stdout
    other = tool(*argv[:-1], "--steps 3 --batch-size 2 --img-size 64")
    assert other.returncode == 2 and "was made with other options" in other.stderr


def test_joined_options_may_begin_with_a_dash() -> None:
    argv = reproduce._joined(["coco", "--pretrain-options", "--steps 3", "--data", "x"])
    assert reproduce.build_parser().parse_args(argv).pretrain_options == "--steps 3"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (JobError(143, None), ("stopped: the same command continues from here", "")),
        (JobError(130, None), ("stopped: the same command continues from here", "")),
        (JobError(2, "error: --lr 0 is wrong"), ("", "error: --lr 0 is wrong\n")),
    ],
)
def test_exit_codes_and_error_lines_of_jobs_are_passed_on(
    error: JobError,
    shown: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(self: Executor, jobs: list[Job]) -> None:
        raise error

    monkeypatch.setattr(Executor, "run", run)
    (tmp_path / "coco").mkdir()
    argv = ["coco/vit_small_random", "--data", str(tmp_path / "coco"), "--output", str(tmp_path / "out")]
    assert reproduce.main(argv) == error.code
    out, err = capsys.readouterr()
    assert shown[0] in out and err == shown[1]
    assert not (tmp_path / "out" / "table.md").exists()
    assert reproduce.main(argv) == error.code  # the folder can be used again


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    output = tmp_path / "out"
    code = (
        "import sys, time; from pretrain.training.run_folder import RunFolder\n"
        "folder = RunFolder.open(sys.argv[1], resume=False, artefact='x'); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(output)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        argv = ["coco/vit_small_random", "--data", str(tmp_path / "coco"), "--output", str(output)]
        command = [sys.executable, "tools/reproduce.py", *argv]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    finally:
        holder.kill()
        holder.wait()
    assert done.returncode == 2 and "is in use by another process" in done.stderr
