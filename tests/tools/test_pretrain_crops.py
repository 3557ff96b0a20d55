"""`--crops device` through the tool: the bytes of a run with Pillow's crops, however it was made."""

import json
import os
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.pretrain_tool import ENCODER, OPTIONS, command, error_of, run, state_of

DEVICE = ["--crops", "device"]


@pytest.fixture(scope="module")
def by_pillow(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cpu"
    result = run("--data", images, "--output", folder, *OPTIONS, "--strong-augment", "true")
    assert result.returncode == 0, result.stderr
    return folder


def test_bytes_are_those_of_pillows_crops_with_and_without_workers_and_cache(by_pillow, images, tmp_path):
    words = ["--data", images, *OPTIONS, "--strong-augment", "true", *DEVICE]
    for name, more, said in (
        ("sent", ["--workers", "1"], "sent by the data processes"),
        ("cached", ["--cache", tmp_path / "cache"], "GB of cached images"),
    ):
        result = run(*words, *more, "--output", tmp_path / name)
        assert result.returncode == 0 and said in result.stdout, result.stderr
        assert (tmp_path / name / ENCODER).read_bytes() == (by_pillow / ENCODER).read_bytes()
        assert json.loads((tmp_path / name / "config.json").read_text())["values"]["crops"] == "device"


def test_a_resume_keeps_where_crops_are_made(by_pillow, images, tmp_path):
    words = ["--data", images, *OPTIONS, "--strong-augment", "true", "--output", tmp_path / "run"]
    assert run(*words, *DEVICE).returncode == 0
    (tmp_path / "run" / ENCODER).unlink()  # as after a kill between the steps 4 and 6
    (tmp_path / "run/checkpoints/step_00000006.safetensors").unlink()
    assert "--crops was device and is now cpu" in error_of(run(*words, "--resume", "--crops", "cpu"))
    result = run(*words, "--resume")
    assert result.returncode == 0 and "crops are made on cpu" in result.stdout, result.stderr
    assert state_of(tmp_path / "run") == state_of(by_pillow)


def test_accumulated_micro_batches_of_other_methods_as_well(images, tmp_path):
    words = ["--data", images, *OPTIONS, "--accumulate", "2", "--method", "beit"]
    for name, more in (("cpu", []), ("device", DEVICE)):
        result = run(*words, *more, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "device" / ENCODER).read_bytes() == (tmp_path / "cpu" / ENCODER).read_bytes()
    refused = run("--data", images, "--output", tmp_path / "dino", *OPTIONS, "--method", "dino", *DEVICE)
    assert "--crops device has no effect with --method dino: omit it" in error_of(refused)


@pytest.mark.slow  # four processes that import torch
def test_two_processes_make_the_crops_of_their_share(images, tmp_path):
    words = ["--data", images, *OPTIONS, "--steps", "2", "--device", "cpu"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    for port, name, more in ((29561, "cpu", []), (29562, "device", DEVICE)):
        arguments = command(*words, *more, "--output", tmp_path / name)[1:]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        whole = [*launch, f"--master-port={port}", *arguments]
        result = subprocess.run(whole, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
    assert (tmp_path / "device" / ENCODER).read_bytes() == (tmp_path / "cpu" / ENCODER).read_bytes()


def test_reduced_jpegs_are_part_of_what_a_run_is(images, tmp_path):
    """Crops of 32 px of images of 90: some are decoded by halves, and the bytes are others."""
    words = ["--data", images, *OPTIONS, "--img-size", "32"]
    reduced = [*words, "--reduced-jpeg", "true"]
    for name, more in (("whole", words), ("one", reduced), ("two", [*reduced, "--workers", "1", *DEVICE])):
        result = run(*more, "--output", tmp_path / name)
        assert result.returncode == 0, result.stderr
    found = {name: (tmp_path / name / ENCODER).read_bytes() for name in ("whole", "one", "two")}
    assert found["one"] == found["two"] != found["whole"]
    said = "--reduced-jpeg was True and is now False"
    assert said in error_of(run(*words, "--reduced-jpeg", "false", "--output", tmp_path / "one", "--resume"))
    refused = run(*reduced, "--cache", tmp_path / "cache", "--output", tmp_path / "x")
    assert "keeps whole images" in error_of(refused) and not (tmp_path / "x").exists()
