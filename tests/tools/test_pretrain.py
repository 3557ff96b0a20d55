"""tools/pretrain.py as a user runs it: results, exactness over kills and resumes, and every kind of wrong input."""

import json
import os
import re
import shutil
import signal
import subprocess
import time

import pytest
from PIL import Image

from tests.helpers.pretrain_tool import OPTIONS, command, error_of, run


@pytest.fixture(scope="module")
def finished(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "whole"
    result = run("--data", images, "--output", output, *OPTIONS)
    assert result.returncode == 0, result.stderr
    return output


def test_what_a_run_writes(finished):
    from splitmask_backbones import load_encoder

    assert load_encoder(finished / "encoder.safetensors").embed_dim == 192
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["images"]) for line in lines] == [(2, 16), (4, 32), (6, 48)]
    assert " ".join(lines[0]) == (
        "step epoch images loss loss_inpaint loss_match token_accuracy lr grad_norm images_per_second"
    )
    assert lines[0]["epoch"] == pytest.approx(1.0)  # floor(20 / 8) = 2 steps an epoch
    assert 0 <= lines[0]["token_accuracy"] <= 1
    config = json.loads((finished / "config.json").read_text())
    assert config["values"]["steps"] == 6
    assert sorted(p.name for p in (finished / "checkpoints").iterdir()) == [
        "step_00000004.safetensors",
        "step_00000006.safetensors",
    ]
    assert list(finished.glob("events.out.tfevents*"))
    assert json.loads((finished / "tokenizer.json").read_text())["words_used"] > 1
    assert not (finished / "bad_images.txt").exists()


def test_bytes_do_not_depend_on_workers_intervals_or_place(finished, images, tmp_path):
    elsewhere = tmp_path / "moved" / "images"
    shutil.copytree(images, elsewhere)
    words = ["--recipe", "tiny", "--steps", "6", "--save-every", "100", "--log-every", "1", "--workers", "2"]
    result = run("--data", elsewhere, "--output", tmp_path / "run", *words)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/encoder.safetensors").read_bytes() == (finished / "encoder.safetensors").read_bytes()


def test_bytes_are_the_same_from_a_cache(finished, images, tmp_path, monkeypatch):
    cache = ["--cache", tmp_path / "cache"]
    for output, workers in (("filling", 0), ("filled", 2)):
        result = run("--data", images, "--output", tmp_path / output, *OPTIONS, *cache, "--workers", workers)
        assert result.returncode == 0, result.stderr
        made = tmp_path / output / "encoder.safetensors"
        assert made.read_bytes() == (finished / "encoder.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "cache")  # a resume fills it again
    (tmp_path / "filled/encoder.safetensors").unlink()
    shutil.rmtree(tmp_path / "filled/checkpoints")
    result = run("--data", images, "--output", tmp_path / "filled", *OPTIONS, *cache, "--resume")
    assert result.returncode == 0 and list((tmp_path / "cache").glob("*/pixels.u8")), result.stderr
    assert made.read_bytes() == (finished / "encoder.safetensors").read_bytes()
    monkeypatch.setattr("pretrain.data.cache_filling._SPARE", 1 << 60)
    refused = run("--data", images, "--output", tmp_path / "x", *OPTIONS, "--cache", tmp_path / "other")
    assert "--cache off" in error_of(refused)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    result = run("--data", images, "--output", tmp_path / "auto", *OPTIONS, "--cache", "auto")  # goes on without
    assert result.returncode == 0 and "warning: the cache in" in result.stderr


def test_images_are_chosen_by_globs_and_a_resume_keeps_them(images, tmp_path):
    shutil.copytree(images, tmp_path / "data/images")
    (tmp_path / "data/masks").mkdir()
    files = sorted(path for path in (tmp_path / "data/images").rglob("*.*") if path.is_file())
    for path in files[:3]:
        Image.new("L", (8, 8)).save(tmp_path / f"data/masks/{path.stem}.png")
    output = tmp_path / "run"
    words = ["--data", tmp_path / "data", "--output", output, *OPTIONS, "--batch-size", 2]
    result = run(*words, "--exclude", files[0].name)
    assert result.returncode == 0, result.stderr
    assert "3 label files left out (masks)" in result.stdout and "left out by --exclude" in result.stdout
    config = json.loads((output / "config.json").read_text())
    assert config["free"]["exclude"] == [files[0].name]
    assert run(*words, "--resume").returncode == 0  # without the option: it is kept
    assert "num_files" in error_of(run(*words, "--resume", "--exclude", "nothing"))
    assert "--include *.gif leaves none" in error_of(run(*words[:3], tmp_path / "new", *OPTIONS, "--include", "*.gif"))
    assert not (tmp_path / "new").exists()


def test_another_seed_gives_other_bytes(finished, images, tmp_path):
    assert run("--data", images, "--output", tmp_path / "run", *OPTIONS, "--seed", 1).returncode == 0
    assert (tmp_path / "run/encoder.safetensors").read_bytes() != (finished / "encoder.safetensors").read_bytes()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_equals_uninterrupted(finished, images, tmp_path, number):
    output = tmp_path / "run"
    words = ["--data", images, "--output", output, *OPTIONS, "--steps", "40", "--save-every", "3", "--log-every", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command(*words), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_step(output, 5)
    process.send_signal(number)
    told, errors = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number]
    assert "Traceback" not in errors
    assert not (output / "encoder.safetensors").exists()
    done = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    if number != signal.SIGKILL:
        newest = sorted((output / "checkpoints").iterdir())[-1].name
        assert newest == f"step_{done:08d}.safetensors"
        assert told.endswith(f"stopped and saved at step {done} of 40: --resume goes on from here\n")
    result = run("--data", images, "--output", output, "--recipe", "tiny", "--resume", "--workers", "0")
    assert result.returncode == 0, result.stderr
    whole = tmp_path / "whole"
    assert run(*words[:2], "--output", whole, *words[4:]).returncode == 0
    assert (output / "encoder.safetensors").read_bytes() == (whole / "encoder.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    wanted = sorted({*range(1, done + 1), *range(20, 41, 20), 40})
    assert steps == sorted(set(steps))
    assert {20, 40} <= set(steps)
    assert set(steps) <= set(wanted)


def wait_for_step(output, step):
    for _ in range(600):
        if (output / "metrics.jsonl").exists() and f'"step": {step},' in (output / "metrics.jsonl").read_text():
            return
        time.sleep(0.05)
    raise AssertionError("the run did not get there")


def test_resume_after_damage(finished, images, tmp_path):
    output = tmp_path / "run"
    shutil.copytree(finished, output)
    (output / "encoder.safetensors").unlink()
    newest = output / "checkpoints/step_00000006.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    result = run("--data", images, "--output", output, *OPTIONS, "--resume")
    assert result.returncode == 0, result.stderr
    assert re.search(r"^warning: .*step_00000006", result.stderr, re.MULTILINE)
    assert (output / "encoder.safetensors").read_bytes() == (finished / "encoder.safetensors").read_bytes()


def test_resume_of_a_finished_run_changes_nothing(finished, images):
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in finished.rglob("*") if path.is_file()}
    assert run("--data", images, "--output", finished, *OPTIONS, "--resume").returncode == 0
    assert before == {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in finished.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--steps", "7"], "--steps was 6 and is now 7"),
        (["--lr", "0.1"], "--lr was None and is now 0.1"),
        (["--model", "vit_small"], "--model was vit_tiny and is now vit_small"),
        (["--recipe", "small"], "--recipe tiny and not small"),
    ],
)
def test_resume_with_other_values(finished, images, words, match):
    result = run("--data", images, "--output", finished, *OPTIONS, "--resume", *words)
    assert match in error_of(result)


def test_resume_with_other_data(finished, images, tmp_path):
    shutil.copytree(images, tmp_path / "images")
    (tmp_path / "images/00.jpg").unlink()
    result = run("--data", tmp_path / "images", "--output", finished, *OPTIONS, "--resume")
    assert "--data (num_files) was 20 and is now 19" in error_of(result)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--recipe", "tinny"], "--recipe: unknown recipe 'tinny': did you mean 'tiny'"),
        (["--model", "vit_smal"], "--model: unknown model 'vit_smal': did you mean 'vit_small'"),
        (["--method", "splitmaks"], "did you mean 'splitmask'"),
        (["--tokenizer", "kmean"], "did you mean 'kmeans'"),
        (["--tokenizer", "dalle"], "--tokenizer dalle needs"),
        (["--tokenizer", "kmeans", "--vocab-size", "9999"], "320 patches for a codebook of 9999"),
        (["--tokenizer", "random_patches", "--vocab-size", "9999"], "320 patches for a codebook of 9999"),
        (["--patch-nrom", "mean"], "unknown option '--patch-nrom': did you mean '--patch-norm'"),
        (["--epochs", "3"], "--epochs and --steps exclude each other"),
        (["--hours", "1", "--rehearse"], "--hours has no effect with --rehearse"),
        (["--batch-size", "64"], "--batch-size 64 is larger than the data set of 20 images"),
        (["--img-size", "100"], "--img-size 100 must be a multiple"),
        (["--img-size", "48"], "even number of patches"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["-steps", "3"], "unknown option '-steps': did you mean '--steps'"),
        (["--output", ""], "--output is empty"),
        (["--lr", "nan"], "--lr nan: expected a number"),
        (["--lr", "fast"], "--lr: must be a number, got 'fast'"),
        (["--lr", "1e30"], "the loss is not finite at step"),
        (["--resume"], "nothing to resume"),
        (["--data", "/nowhere/images"], "/nowhere/images"),
        (["--output", "/proc/none/run"], "/proc/none"),
    ],
)
def test_wrong_input(images, tmp_path, words, match):
    result = run("--data", images, "--output", tmp_path / "run", *OPTIONS, *words)
    assert match in error_of(result)
    assert not (tmp_path / "run/encoder.safetensors").exists()


def test_a_refused_start_can_be_corrected(images, tmp_path):
    result = run("--data", images, "--output", tmp_path / "run", *OPTIONS, "--batch-size", "100")
    assert "--batch-size 100" in error_of(result)
    assert not (tmp_path / "run").exists()


def test_debug_shows_the_traceback_and_exits_2(images, tmp_path):
    result = run("--data", tmp_path / "none", "--output", tmp_path / "run", *OPTIONS, "--debug")
    assert result.returncode == 2
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error:")


def test_bad_images_are_counted_and_listed(images, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images, folder)
    content = (folder / "03.jpg").read_bytes()
    (folder / "03.jpg").write_bytes(content[: len(content) // 2])
    result = run("--data", folder, "--output", tmp_path / "run", *OPTIONS)
    assert "03.jpg" in (error_of(result) + result.stderr)
    assert "03.jpg" in (tmp_path / "run/bad_images.txt").read_text()
    result = run("--data", folder, "--output", tmp_path / "run2", *OPTIONS, "--max-bad-fraction", "0.1")
    assert result.returncode == 0, result.stderr
    assert "03.jpg" in (tmp_path / "run2/bad_images.txt").read_text()


def test_help_lists_every_recipe_fast():
    start = time.monotonic()
    result = run("--help")
    assert time.monotonic() - start < 2
    from pretrain.recipes import RECIPES

    assert all(f"  {name} " in result.stdout for name in RECIPES)
    assert "does not enlarge the set of negatives" in " ".join(result.stdout.split())
