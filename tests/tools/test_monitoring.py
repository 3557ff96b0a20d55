"""Monitoring through the tool: the same bytes as without it, each look once whatever was killed, wrong options."""

import json
import shutil

import pytest

from tests.helpers.methods import METHODS
from tests.helpers.pretrain_tool import ENCODER, OPTIONS, error_of, run, state_of
from tools.monitoring import advise, draw


def looks_of(folder):
    lines = [json.loads(line) for line in (folder / "monitor.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("method", ["splitmask", METHODS[1]])
def test_the_bytes_are_those_without_monitoring(method, images, tmp_path):
    words = ["--data", images, "--method", method, *OPTIONS]
    assert run(*words, "--output", tmp_path / "without").returncode == 0
    labels = tmp_path / "labels"
    for index, picture in enumerate(sorted(images.iterdir())):
        (labels / "ab"[index % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, labels / "ab"[index % 2])
    monitored = [*words, "--monitor-every", 2, "--monitor-labels", labels, "--monitor-images", 8]
    result = run(*monitored, "--output", tmp_path / "with")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "with" / ENCODER).read_bytes() == (tmp_path / "without" / ENCODER).read_bytes()
    assert state_of(tmp_path / "with") == state_of(tmp_path / "without")
    metrics = [json.loads((tmp_path / n / "metrics.jsonl").read_text().splitlines()[-1]) for n in ("with", "without")]
    assert metrics[0].keys() == metrics[1].keys() and metrics[0]["loss"] == metrics[1]["loss"]
    assert not (tmp_path / "without/monitor.jsonl").exists()
    looks = looks_of(tmp_path / "with")
    assert [(look["step"], look["images"]) for look in looks] == [(2, 16), (4, 32), (6, 48)]
    assert all(look["effective_rank"] > 1 and 0 <= look["knn_accuracy"] <= 1 for look in looks)
    assert (tmp_path / "with/monitor.png").stat().st_size > 5000
    assert "monitor at step 4: train_loss" in result.stdout

    shutil.copytree(tmp_path / "with", tmp_path / "again")  # as after a kill between the steps 4 and 6
    (tmp_path / "again" / ENCODER).unlink()
    (tmp_path / "again/checkpoints/step_00000006.safetensors").unlink()
    with open(tmp_path / "again/monitor.jsonl", "a") as file:
        file.write('{"step": 7, "epo')
    assert run(*words, "--output", tmp_path / "again", "--resume").returncode == 0  # goes on monitoring
    assert looks_of(tmp_path / "again") == looks
    assert (tmp_path / "again" / ENCODER).read_bytes() == (tmp_path / "with" / ENCODER).read_bytes()


@pytest.mark.parametrize(
    ("look", "said"),
    [
        ({"train_inpaint_gain": 0.15, "train_match_rank1": 0.22, "train_color_rank1": 0.15}, ["find 15%"]),
        ({"train_inpaint_gain": 0.1, "train_match_rank1": 0.32, "train_color_rank1": 0.07}, []),
        ({"train_inpaint_gain": -0.1, "train_match_rank1": 0.1, "train_color_rank1": 0.2}, ["-0.10 nats", "find 20%"]),
        ({"train_inpaint_gain": None, "train_match_rank1": 0.0, "train_color_rank1": 0.0}, []),
        ({"train_inpaint_gain": 0.1, "train_match_rank1": 0.0, "train_color_rank1": 0.5}, ["find 50%"]),
        ({"effective_rank": 3.0}, []),
        ({"attention_entropy": 0.16}, ["attention entropy 0.16"]),
        ({"attention_entropy": 0.56}, []),
    ],
)
def test_advice_follows_the_last_look(look, said, tmp_path):
    first = {"step": 1, "train_inpaint_gain": -1.0}
    (tmp_path / "monitor.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps({'step': 2, **look})}\n")
    advice = advise(tmp_path, 0.0, 1.0, None)
    assert len(advice) == len(said) and all(part in line for part, line in zip(said, advice, strict=True))
    assert advise(tmp_path, 0.4, 1.0, None) == [line for line in advice if "colours" not in line]
    assert advise(tmp_path, 0.0, 0.0, None) == advise(tmp_path, 0.4, 1.0, None), (
        "without matching there is none to advise"
    )
    assert advise(tmp_path / "nothing", 0.0, 1.0, None) == []
    assert [("--qk-limit 3 " in line) for line in advice] == [("entropy" in line) for line in advice]
    assert not any("--qk-limit 3 " in line for line in advise(tmp_path, 0.0, 1.0, 3.0))  # it had that


def test_a_file_with_other_columns_is_drawn(tmp_path, monkeypatch):
    """Its lines have another gain than today's: their other numbers are drawn, and today's from where they begin."""
    panels = {}
    monkeypatch.setattr("tools.common.plots.save_curves", lambda found, path: panels.update(found))
    old = {"step": 1, "train_inpaint_gain": 0.1, "train_position_gain": 0.0}
    new = {"step": 2, "train_inpaint_gain": 0.2, "train_query_gain": 0.3, "train_neighbour_gain": 0.05}
    (tmp_path / "monitor.jsonl").write_text(f"{json.dumps(old)}\n{json.dumps(new)}\n")
    draw(tmp_path)
    (curves,) = panels.values()
    assert curves == {
        "train inpaint gain": ([1, 2], [0.1, 0.2]),
        "train query gain": ([2], [0.3]),
        "train neighbour gain": ([2], [0.05]),
    }
    assert advise(tmp_path, 0.0, 1.0, None) == []


def test_images_kept_out(images, tmp_path):
    words = ["--data", images, *OPTIONS, "--steps", 2, "--output", tmp_path / "run"]
    result = run(*words, "--holdout", "0.3", "--monitor-every", 5)
    assert result.returncode == 0, result.stderr
    kept = int(result.stdout.partition(" of 20 images are kept out")[0].rpartition("\n")[2])
    assert 0 < kept < 20 and f"{20 - kept} images, 2 steps" in result.stdout
    (look,) = looks_of(tmp_path / "run")
    assert look["step"] == 2 and look["holdout_loss_inpaint"] != look["train_loss_inpaint"]
    resume = ["--recipe", "tiny", "--data", images, "--output", tmp_path / "run", "--resume"]
    assert run(*resume, "--monitor-every", 0).returncode == 0
    assert "--holdout was 0.3 and is now 0.4" in error_of(run(*resume, "--holdout", "0.4"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--holdout", "0.2"], "--holdout 0.2 has no effect without --monitor-every"),
        (["--monitor-labels", "x"], "--monitor-labels x has no effect without --monitor-every"),
        (["--monitor-every", "-1"], "--monitor-every: must be at least 0"),
        (["--monitor-every", "5", "--holdout", "1.5"], "--holdout: must be between 0 and 1"),
        (["--monitor-every", "5", "--monitor-labels", "/none/x"], "--monitor-labels /none/x is not a folder"),
        (["--monitor-evry", "5"], "did you mean '--monitor-every'"),
    ],
)
def test_wrong_options(words, expected, images, tmp_path):
    assert expected in error_of(run("--data", images, "--output", tmp_path / "out", *OPTIONS, *words))
    assert not (tmp_path / "out").exists()
