"""Signals and failures in runs of several processes: one error line, and nobody is waited for."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from pretrain.training import distributed, signals
from pretrain.training.signals import StopSignals, discard
from tests.helpers.launch import set_torchrun
from tests.helpers.paths import ROOT

SCRIPT = """
import _path
from datetime import timedelta
from pathlib import Path
from tools import cli
def main(argv):
    from pretrain.training.distributed import make_fabric
    from pretrain.training.signals import StopSignals
    import torch.distributed as dist
    with StopSignals() as stop:
        fabric = make_fabric()
        stop.graceful = argv[0] == "training"
        fabric.barrier()
        if fabric.global_rank == 1:
            Path(__file__).with_name("failed").touch()
            raise ValueError("the image is gone")
        # As NCCL waits for a rank that has gone: out of Python's reach, and without noticing.
        dist.distributed_c10d._get_default_store().wait(["never"], timedelta(seconds=60))
cli.run(main)
"""


@pytest.mark.parametrize("phase", ["setup", "training"])
def test_a_rank_that_fails_ends_all_at_once_with_one_line(phase, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {key: value for key, value in os.environ.items() if key != "RANK"}
    env |= {"PYTHONPATH": str(ROOT / "tools"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    port = {"setup": 29541, "training": 29542}[phase]
    words = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}", str(script), phase]
    done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert re.findall(r"^error: .*$", done.stderr, flags=re.MULTILINE) == [
        "error: ValueError: the image is gone; run again with --debug for the traceback"
    ], done.stderr
    failed = (tmp_path / "failed").stat().st_mtime
    assert time.time() - failed < 20, "torchrun alone would wait for 30 s"


def test_a_gpu_that_is_not_there_is_an_error_of_the_user(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: there is no GPU to use"):
        distributed.make_fabric(device="cuda")
    with pytest.raises(ValueError, match="unknown --device 'gpu'"):
        distributed.make_fabric(device="gpu")
    assert distributed.make_fabric(device="cpu").device.type == "cpu"


def test_more_processes_than_gpus_is_an_error_of_the_user(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    set_torchrun(monkeypatch, world_size=2)
    with pytest.raises(ValueError, match=r"--nproc-per-node=2 .* GPUs \(1\): use --nproc-per-node=1"):
        distributed.make_fabric()


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(1)  # the handler runs between two instructions


def test_within_a_graceful_section_the_first_signal_waits_for_the_loop():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals() as stop:
        stop.graceful = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.received == signal.SIGTERM
        with pytest.raises(SystemExit) as ended:
            send(signal.SIGTERM)
        assert ended.value.code == 143
    with StopSignals(), pytest.raises(SystemExit) as ended:
        send(signal.SIGINT)
    assert ended.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_hang_up_counts_once_and_as_a_request_to_save(monkeypatch):
    discarded = []
    monkeypatch.setattr(signals, "discard", lambda *streams: discarded.extend(streams))
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    try:
        with StopSignals() as stop:
            stop.graceful = True
            for _ in range(2):  # the shell's and the kernel's
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(0.1)
            assert stop.received == signal.SIGTERM and discarded == [sys.stdout, sys.stderr]
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        assert stop.received is None and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_is_discarded_goes_nowhere(tmp_path):
    with open(tmp_path / "file", "w") as file:
        file.write("before")
        file.flush()
        discard(file, io.StringIO())  # the latter has no file to take away
        file.write("after")
    assert (tmp_path / "file").read_text() == "before"


def test_in_a_thread_signals_are_left_to_the_main_program():
    before, entered = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], []

    def run():
        with StopSignals() as stop:
            entered.append(stop)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(entered) == 1 and entered[0].received is None
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
