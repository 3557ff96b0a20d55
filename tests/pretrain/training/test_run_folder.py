"""Who owns an output folder, what may be resumed, and strict JSON."""

import errno
import fcntl
import json
import os
import subprocess
import sys

import pytest

from pretrain.training.run_folder import RunFolder, write_json
from splitmask_backbones.run_files import BAD_IMAGES, METRICS_LOG, RESULTS

ARTEFACT = "encoder.safetensors"


def open_folder(path, resume=False):
    return RunFolder.open(path, resume=resume, artefact=ARTEFACT)


def test_new_run_then_resume(tmp_path):
    path = tmp_path / "a" / "run"
    with open_folder(path) as folder:
        assert folder.previous is None
        folder.write_config({"values": {"lr": 0.1, "betas": (0.9, 0.99)}, "free": {"workers": 1}})
    with open_folder(path, resume=True) as folder:
        assert folder.previous["values"]["lr"] == 0.1
        folder.write_config({"values": {"lr": 0.1, "betas": (0.9, 0.99)}, "free": {"workers": 5}})
        assert not folder.finished


def test_another_run_is_refused(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.write_config({"values": {}})
    with pytest.raises(ValueError, match="holds another run .*--resume"):
        open_folder(tmp_path)


@pytest.mark.parametrize("name", [ARTEFACT, RESULTS, METRICS_LOG])
def test_a_file_of_another_run_alone_is_refused_too(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="holds another run"):
        open_folder(tmp_path)
    assert (tmp_path / name).read_bytes() == b"x"


def test_an_empty_log_of_a_start_that_failed_is_no_run(tmp_path):
    (tmp_path / METRICS_LOG).touch()
    open_folder(tmp_path).close()


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        open_folder(tmp_path / "new", resume=True)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="nothing to resume"):
        open_folder(tmp_path, resume=True)


def test_a_run_killed_before_its_config_can_be_resumed(tmp_path):
    (tmp_path / ".lock").touch()
    with open_folder(tmp_path, resume=True) as folder:
        assert folder.previous is None


def test_difference_names_option_and_both_values(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.write_config({"values": {"batch_size": 8}, "data": {"fingerprint": "a"}})
    with open_folder(tmp_path, resume=True) as folder:
        with pytest.raises(ValueError, match=r"--batch-size was 8 and is now 16"):
            folder.write_config({"values": {"batch_size": 16}, "data": {"fingerprint": "a"}})
        with pytest.raises(ValueError, match=r"--data \(fingerprint\) was a and is now b"):
            folder.write_config({"values": {"batch_size": 8}, "data": {"fingerprint": "b"}})
    assert json.loads((tmp_path / "config.json").read_text())["values"] == {"batch_size": 8}


def test_damaged_config(tmp_path):
    (tmp_path / "config.json").write_text('{"values":')
    with pytest.raises(ValueError, match="damaged"):
        open_folder(tmp_path, resume=True)


def test_output_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file"):
        open_folder(tmp_path / "file")


def test_a_failed_start_leaves_nothing_behind(tmp_path):
    folder = open_folder(tmp_path / "run")
    folder.write_config({"values": {}})
    folder.__exit__(ValueError, ValueError("boom"), None)
    assert not (tmp_path / "run").exists()


def test_a_failure_while_training_can_be_resumed(tmp_path):
    folder = open_folder(tmp_path / "run")
    folder.write_config({"values": {}})
    folder.start()
    folder.__exit__(ValueError, ValueError("boom"), None)
    assert open_folder(tmp_path / "run", resume=True).previous == {"values": {}}


def test_empty_output():
    with pytest.raises(ValueError, match="--output is empty"):
        open_folder("")


def test_lock_against_another_process_that_dies(tmp_path):
    code = (
        "import os, sys, time\nfrom pretrain.training.run_folder import RunFolder\n"
        f"folder = RunFolder.open({str(tmp_path)!r}, resume=False, artefact='x')\n"
        "if os.fork() == 0:\n    time.sleep(30)\n    os._exit(0)\n"  # a data worker that survives
        "print('locked', flush=True)\ntime.sleep(30)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True) as p:
        assert p.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="in use"):
            open_folder(tmp_path)
        p.kill()
        p.wait()
        with open_folder(tmp_path):
            pass
        import os
        import signal

        os.killpg(p.pid, signal.SIGKILL)


def test_names_that_are_not_utf8_come_back(tmp_path):
    write_json(tmp_path / "x.json", {"name": "caf\udce9"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"name": "caf\udce9"}


def test_strict_json(tmp_path):
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5], 3: None})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": None, "b": [None, 1.5], "3": None}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_what_a_killed_save_left_goes_once_the_folder_is_locked(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.write_config({"values": {}})
    (tmp_path / "checkpoints").mkdir()
    gone = ["checkpoints/.tmpAb3xYz", "checkpoints/.step_00000004.safetensors.tmp", ".config.json.4711.tmp"]
    kept = ["checkpoints/step_00000002.safetensors", "notes.tmp", ".tmpfolder.txt"]
    for name in gone + kept:
        (tmp_path / name).write_bytes(b"x")
    with open_folder(tmp_path, resume=True):
        assert not any((tmp_path / name).exists() for name in gone)
        assert all((tmp_path / name).exists() for name in kept)


def test_a_value_that_a_later_version_added_is_no_other_setting(tmp_path):
    with open_folder(tmp_path) as folder:
        folder.write_config({"values": {"lr": 0.1}})
    with open_folder(tmp_path, resume=True) as folder:
        folder.write_config({"values": {"lr": 0.1, "ema": None}})
        with pytest.raises(ValueError, match=r"--ema was \(absent\) and is now 0\.9"):
            folder.write_config({"values": {"lr": 0.1, "ema": 0.9}})


def test_another_device_is_told_but_not_refused(tmp_path, caplog):
    with RunFolder.open(tmp_path, resume=False, artefact="e") as folder:
        folder.write_config({"values": {}, "free": {"device": "cuda"}})
    with RunFolder.open(tmp_path, resume=True, artefact="e") as folder:
        folder.write_config({"values": {}, "free": {"device": "cuda"}})
        assert not caplog.records
        folder.write_config({"values": {}, "free": {"device": "cpu"}})
    assert "another device (cuda, now cpu)" in caplog.text


def test_other_processes_or_threads_are_told_where_they_round_otherwise(tmp_path, caplog):
    free = {"device": "cpu", "processes": 8, "threads": 2}
    with RunFolder.open(tmp_path, resume=False, artefact="e") as folder:
        folder.write_config({"values": {}, "free": free})
    with RunFolder.open(tmp_path, resume=True, artefact="e") as folder:
        folder.write_config({"values": {}, "free": free | {"processes": 4}})
        folder.write_config({"values": {}, "free": free | {"threads": 1}})
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "--resume with another number of processes (8, now 4)",
        "--resume with another number of threads (2, now 1)",
    ]


def test_what_begins_anew_finds_an_empty_folder(tmp_path):
    with RunFolder.open(tmp_path, resume=False, artefact="e") as folder:
        folder.write_config({"values": {}, "rehearsal": True})
    (tmp_path / "checkpoints/old").mkdir(parents=True)
    with RunFolder.open(tmp_path, resume=False, artefact="e", anew=True) as folder:
        assert [path.name for path in tmp_path.iterdir()] == [".lock"] and folder.previous is None


def test_a_rehearsal_clears_no_run_away(tmp_path):
    with RunFolder.open(tmp_path, resume=False, artefact="e") as folder:
        folder.write_config({"values": {}})
    (tmp_path / "e").write_bytes(b"an encoder")
    for _ in range(2):  # nor is the folder left locked
        with pytest.raises(ValueError, match="holds a run: move it, or choose another --output"):
            RunFolder.open(tmp_path, resume=False, artefact="rehearsal.json", anew=True)
    assert (tmp_path / "e").read_bytes() == b"an encoder"


def test_two_runs_of_one_process_do_not_share_a_folder(tmp_path):
    """The system's lock holds off other processes alone, and is lost when any file of the lock is closed."""
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with open_folder(tmp_path / "run"):
        for name in ("run", "link"):
            with pytest.raises(ValueError, match="in use by another run of this process"):
                open_folder(tmp_path / name)
        code = (
            "from pretrain.training.run_folder import RunFolder\n"
            f"RunFolder.open({str(tmp_path / 'run')!r}, resume=False, artefact='x')"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert "is in use by another process" in done.stderr
    with open_folder(tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (errno.ENOLCK, None),
        (errno.EOPNOTSUPP, None),
        (errno.EACCES, "is in use by another process"),
        (errno.EAGAIN, "is in use by another process"),
        (errno.EIO, "cannot be locked .Input/output error.: mount it again, or choose another folder"),
    ],
)
def test_a_file_system_without_locks_is_not_in_use(number, match, tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    if match is None:
        with open_folder(tmp_path / "run") as folder:
            folder.write_config({"values": {}})
        assert f"{tmp_path / 'run'} lies on a file system without locks" in caplog.text
    else:
        with pytest.raises(ValueError, match=match):
            open_folder(tmp_path / "run")
        monkeypatch.undo()
        with open_folder(tmp_path / "run"):
            pass


def test_bad_images_of_a_start_that_failed_are_forgotten(tmp_path):
    with RunFolder.open(tmp_path, resume=False, artefact="done"):
        (tmp_path / BAD_IMAGES).write_text("a.png\tcut\n")
    with RunFolder.open(tmp_path, resume=False, artefact="done") as folder:
        assert not (tmp_path / BAD_IMAGES).exists()
        folder.write_config({})
        folder.start()
        (tmp_path / BAD_IMAGES).write_text("b.png\tcut\n")
    with RunFolder.open(tmp_path, resume=True, artefact="done"):
        assert (tmp_path / BAD_IMAGES).exists(), "a resume does not look again at what is known"


def test_checkpoints_without_a_record_are_of_an_unknown_run(tmp_path):
    """Without it, other values than those of the run would go on with its checkpoints."""
    (tmp_path / ".lock").touch()
    (tmp_path / "checkpoints").mkdir()
    RunFolder.open(tmp_path, resume=True, artefact="x").close()  # killed before the first checkpoint
    (tmp_path / "checkpoints" / "step_00000004.safetensors").touch()
    with pytest.raises(ValueError, match=r"config.json is missing, which says what run its checkpoints are of"):
        RunFolder.open(tmp_path, resume=True, artefact="x")
