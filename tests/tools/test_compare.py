"""tools/compare.py: option errors, and a whole comparison of a fake tool.

What it is given is read by tools/comparison/inputs.py, and carried out by tools/comparison/carry_out.py; the runs of
--same-time are those of tools/comparison/same_time.py, the plot is of tools/comparison/drawings.py.
"""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from tests.helpers.drawn import note
from tests.helpers.in_process import run_tool
from tools import compare
from tools.comparison import plan, report
from tools.comparison.plan import Comparison, Setting
from tools.running import executor
from tools.running.planned import config_of, without_config

# A fine-tuning whose box AP is steps * labels + seed, 10 more with weights, and one less at another rate than 0.001 for
# random init and 0.002 for weights.
FAKE = """
import json, os, sys
argv = sys.argv[1:]
value = lambda name, default: argv[argv.index(name) + 1] if name in argv else default
out = value("--output", None)
trained = value("--weights", None) != "none"
if "depth=5" in argv and trained:
    sys.exit(sys.stderr.write("error: the encoder is of another size\\n") and 2)
if value("--data", None) == "MISSING":
    sys.exit(sys.stderr.write("error: --data MISSING does not exist\\n") and 2)
if "--predict" in argv:
    os.makedirs(out + "/predictions", exist_ok=True)
    from PIL import Image
    for name in os.listdir(value("--predict", None)): Image.new("RGB", (8, 8)).save(f"{out}/predictions/{name}")
    sys.exit(0)
if "--rehearse" in argv:
    os.makedirs(out + "/rehearsal")
    encoder = {"embed_dim": 96 if trained or "embed_dim=192" not in argv else 192, "depth": 6}
    open(out + "/rehearsal/config.json", "w").write(json.dumps({"encoder": encoder}))
    entry = {"setup_seconds": 1.0, "step_seconds": 0.5, "total_steps": 10, "whole_run": {"evaluations": 2.0}}
    entry["num_evaluations"] = 1
    sys.exit(open(out + "/rehearsal/rehearsal.json", "w").write(json.dumps(entry)) and 0)
os.makedirs(out)
root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
share = value("--labels", "1")
train, changed = "all" if share == "1" else [share, value("--seed", None)], root + "/data.json"
data = {"val": "v", "train": train} | (json.load(open(changed)) if os.path.exists(changed) else {})
open(out + "/config.json", "w").write(json.dumps({"data": data}))
steps = int(value("--steps", 10))
for step in (steps // 2, steps):  # 2 s a step, of 4 images
    line = json.dumps({"step": step, "images": 4 * step, "images_per_second": 2})
    print(line, file=open(out + "/metrics.jsonl", "a"), flush=True)
best = "0.002" if trained else "0.001"
rate = value("--lr", best)
score = steps * float(value("--labels", 1)) + int(value("--seed", 0))
score += 10 * trained - (rate != best)
if trained and value("--seed", 0) == "1" and steps == 40: score -= 20
results = {"bbox": {"AP": score}, "segm": {"AP": None}}
if os.path.exists(root + "/gaps") and trained: results["warning"] = "1 key is missing"
open(out + "/results.json", "w").write(json.dumps(results))
"""


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns an encoder file that no tool reads: the executor starts the fake tool."""
    (tmp_path / "root" / "tools").mkdir(parents=True)
    (tmp_path / "root" / "tools" / "train_det.py").write_text(FAKE)
    monkeypatch.setattr(executor, "ROOT", tmp_path / "root")
    file = tmp_path / "mine" / "encoder.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"weights")
    return file


def run(weights: Path, *words: object) -> CompletedProcess[str]:
    output = weights.parent.parent / "out"
    given = ("train_det", "det_configs/demo.py", "--data", "DATA", "--weights", weights, "--output", output)
    return run_tool(compare.main, *given, *words)


def pretrained(weights: Path, seconds: float) -> None:
    """Makes the folder of the weights that of a pre-training which took so long."""
    (weights.parent / "config.json").write_text(json.dumps({"command": "pretrain"}))
    halves = [{"images": 64 * n, "images_per_second": 128 / seconds} for n in (1, 2)]
    (weights.parent / "metrics.jsonl").write_text("".join(f"{json.dumps(half)}\n" for half in halves))


def lines(done: CompletedProcess[str]) -> list[str]:
    return [line.removeprefix("- ") for line in done.stdout.splitlines()]


def test_each_start_is_compared_at_its_own_best_rate(weights: Path) -> None:
    done = run(weights, "--lr", "0.001,0.002", "--seeds", "2", "--steps", "10,40")
    assert done.returncode == 0, done.stderr
    told = lines(done)
    # 2 + 2 tries and a further seed, 2 starts, 2 lengths
    assert "12 runs, 2 seeds of each start; those that are known:" in told
    assert "| box AP: random init | 10.5 ± 0.7 (2) | 40.5 ± 0.7 (2) |" in told
    assert "| box AP: mine | 20.5 ± 0.7 (2) | 40.5 ± 13.4 (2) |" in told
    assert "| mine above random init | 10.0 ± 0.0 (2) | 0.0 ± 14.1 (2) |" in told
    assert "| lr: random init | 0.001 | 0.001 |" in told and "| lr: mine | 0.002 | 0.002 |" in told
    assert "10 steps: mine against random init: box AP +10.0 ± 0.0: ahead with each of 2 seeds" in told
    assert "40 steps: mine against random init: box AP +0.0 ± 14.1: not told apart by 2 seeds" in told
    assert any(line.startswith("--lr 0.001 is the best rate tried for random init (10 steps)") for line in told)
    assert "mask AP" not in done.stdout, "it is undefined in every run"
    output = weights.parent.parent / "out"
    rows = list(csv.DictReader((output / "table.csv").open()))
    assert [row["lr"] for row in rows if row["start"] == "mine"] == ["0.002", "0.002"]
    assert [row["values"] for row in rows if row["steps"] == "10"] == ["10.0; 11.0", "20.0; 21.0"]
    with Image.open(output / "pictures" / "comparison.png") as picture:
        assert picture.width > 100


def test_random_init_gets_the_time_of_the_pre_training(weights: Path) -> None:
    """60 s are 30 steps of this fine-tuning, at the rate that is random init's best."""
    pretrained(weights, 60.0)
    words = ["--lr", "0.001,0.002", "--seeds", "2", "--steps", "10,40", "--labels", "1", "--same-time"]
    plan_of_it = lines(run(weights, *words, "--dry-run"))
    assert "random init also in the time of mine: 1 min 00 s longer, for each of the above" in plan_of_it
    assert "16 runs, 2 seeds of each start; those that are known:" in plan_of_it
    done = run(weights, *words)
    assert done.returncode == 0, done.stderr
    told = lines(done)
    # 6 runs of 8 s and 6 of 23 s (3 s beside 10 or 40 steps of 0.5 s); 2 of 68 s and 2 of 83 s
    assert "time: about 8 min 08 s in all, by rehearsals" in told
    assert "| box AP: random init, in the time of mine | 40.5 ± 0.7 (2) | 70.5 ± 0.7 (2) |" in told
    assert "| mine above that | -20.0 ± 0.0 (2) | -30.0 ± 14.1 (2) |" in told
    assert "| steps: random init, in the time of mine | 40 | 70 |" in told
    head = "mine against random init in the same time"
    assert f"10 steps: {head} (40 steps): box AP -20.0 ± 0.0: behind with each of 2 seeds" in told
    assert f"40 steps: {head} (70 steps): box AP -30.0 ± 14.1: behind with each of 2 seeds" in told
    assert not any("--same-time tries" in line for line in told)
    commands = [line for line in told if line.startswith("$ ")]
    assert sum("--steps 40" in line and "--weights none" in line for line in commands) == 3, "two tries, two seeds: one"
    assert sum("--steps 70" in line for line in commands) == 2
    output = weights.parent.parent / "out"
    rows = [
        row for row in csv.DictReader((output / "table.csv").open()) if row["start"].endswith("in the time of mine")
    ]
    assert [(row["steps"], row["lr"], row["values"]) for row in rows] == [
        ("40", "0.001", "40.0; 41.0"), ("70", "0.001", "70.0; 71.0")
    ]  # fmt: skip
    again = run(weights, *words)
    assert again.returncode == 0 and "$ " not in again.stdout and "time: " not in again.stdout, "all is done"
    pretrained(weights, 90.0)
    assert "| steps: random init, in the time of mine | 40 | 70 |" in lines(run(weights, *words)), "settled"
    shorter = lines(run(weights, *words[:-1]))
    assert not any("in the time of" in line for line in shorter), "it is not asked for"
    told = "took 1 min 30 s, as long as 45 steps of this fine-tuning: --same-time tries what they do for random init"
    assert f"the pre-training of mine {told}" in shorter


def test_what_is_settled_is_of_one_encoder_and_of_the_best_rate(weights: Path) -> None:
    pretrained(weights, 60.0)
    words = ["--seeds", "1", "--steps", "10", "--same-time"]
    assert "| steps: random init, in the time of mine | 40 |" in lines(run(weights, *words, "--lr", "0.002"))
    told = lines(run(weights, *words, "--lr", "0.001,0.002"))
    assert "| box AP: random init, in the time of mine | 40.0 (1) |" in told, "39 at the rate of before"
    shutil.rmtree(weights.parent.parent / "out/mine")
    weights.write_bytes(b"trained for longer")
    pretrained(weights, 600.0)
    told = lines(run(weights, *words, "--lr", "0.001,0.002"))
    assert "| steps: random init, in the time of mine | 310 |" in told


def test_a_start_whose_time_is_known_at_one_length_alone(weights: Path) -> None:
    pretrained(weights, 60.0)
    other = weights.parent.parent / "other/encoder.safetensors"
    other.parent.mkdir()
    other.write_bytes(b"other")
    words = ["--seeds", "1", "--same-time", "--weights", other]
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(weights.parent / name, other.parent / name)
    assert run(weights, *words, "--steps", "40").returncode == 0
    (weights.parent / "metrics.jsonl").unlink()
    done = run(weights, *words, "--steps", "10,40")
    assert done.returncode == 0, done.stderr
    assert "| steps: random init, in the time of mine | - | 70 |" in lines(done)
    assert "| steps: random init, in the time of other | 40 | 70 |" in lines(done)


def test_the_table_of_the_same_steps_is_there_before_the_longer_runs_end(weights: Path) -> None:
    pretrained(weights, 60.0)
    tool = weights.parent.parent / "root/tools/train_det.py"
    tool.write_text(FAKE.replace("os.makedirs(out)\n", "os.makedirs(out)\nif '40' in argv: sys.exit(2)\n", 1))
    done = run(weights, "--seeds", "1", "--steps", "10", "--lr", "0.001,0.002", "--same-time")
    assert done.returncode == 2 and "can be left out of --lr" not in done.stdout
    assert "| mine above random init | 10.0 (1) |" in (weights.parent.parent / "out/table.md").read_text()


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (("--steps", "10,40"), {"random init": ([10, 40], [10.5, 40.5]), "mine": ([10, 40], [20.5, 40.5])}),
        (("--labels", "0.5,1"), {"random init": ([50, 100], [5.5, 10.5]), "mine": ([50, 100], [15.5, 20.5])}),
        # 60 s are 30 steps: random init's line goes on to them, of one length as well.
        (("--steps", "10", "--same-time"), {"random init": ([10, 40], [10.5, 40.5]), "mine": ([10], [20.5])}),
        (("--labels", "0.5,1", "--steps", "10", "--same-time"), {"mine": ([50, 100], [15.5, 20.5])}),
        (
            ("--labels", "0.5,1", "--steps", "10,20", "--same-time"),
            {"random init, 50 % of the labels": ([10, 20, 40, 50], [5.5, 10.5, 20.5, 25.5])},
        ),
    ],
)
def test_the_scores_are_drawn(
    weights: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], lines: dict[str, tuple[list, list]]
) -> None:
    pretrained(weights, 60.0)
    calls = note(monkeypatch, "errorbar")
    done = run(weights, "--seeds", "2", *words)
    assert done.returncode == 0, done.stderr
    drawn = {named["label"]: args for args, named in calls}
    for label, (x, y) in lines.items():
        assert drawn[label][:2] == (x, y), label
        same = [0.7071] * len(x) if y[-1] != 40.5 or label != "mine" else [0.7071, 13.435]  # of a seed and the next
        assert drawn[label][2] == pytest.approx(same, abs=1e-3)


def test_an_encoder_without_its_run_has_no_time(weights: Path) -> None:
    done = run(weights, "--same-time")
    assert done.returncode == 2 and done.stderr.startswith("error: --same-time: none of the encoders is the")
    pretrained(weights, 60.0)
    done = run(weights, "--same-time", "--jobs", "2")
    assert done.returncode == 2 and done.stderr.startswith("error: --same-time measures how long steps take, which")
    (weights.parent.parent / "other").mkdir()
    other = weights.parent.parent / "other/deit.safetensors"
    other.write_bytes(b"others")
    done = run(weights, "--same-time", "--seeds", "1", "--steps", "10", "--weights", other)
    assert done.returncode == 0, done.stderr
    assert "| deit above random init | 10.0 (1) |" in lines(done)
    assert "| mine above that | -20.0 (1) |" in lines(done) and "| deit above that |" not in done.stdout


def test_what_is_finished_is_kept_when_more_is_asked_for(weights: Path) -> None:
    assert run(weights, "--labels", "0.5", "--seeds", "1").returncode == 0
    done = run(weights, "--labels", "0.5,1", "--seeds", "2")
    assert done.returncode == 0, done.stderr
    commands = [line for line in lines(done) if line.startswith("$ ")]
    assert len(commands) == 6, "2 starts with 2 shares and 2 seeds, 2 of them done before, and no further rehearsal"
    assert "50 % of the labels: mine against random init: box AP +10.0 ± 0.0: ahead with each of 2 seeds" in lines(done)
    reached = "box AP: mine with 50 % of the labels reaches random init with 100 % of the labels"
    assert f"{reached} (15.5 and 10.5, with each of 2 seeds)" in lines(done)


@pytest.mark.parametrize("changed", ["val", "train"])
def test_data_that_change_in_between_are_told(weights: Path, changed: str) -> None:
    words = ["--seeds", "1", "--labels", "0.5,1"]
    assert run(weights, *words).returncode == 0
    output = weights.parent.parent / "out"
    assert run(weights, *words).returncode == 0
    (weights.parent.parent / "root/data.json").write_text(json.dumps({changed: "another"}))
    assert run(weights, *words).returncode == 0, "nothing new is trained"
    shutil.rmtree(output / "mine/50_percent")
    done = run(weights, *words)
    assert done.returncode == 2 and f"error: the {changed} images or labels have changed between" in done.stderr
    assert done.stderr.count("\n") == 1 and "mine/50_percent" in done.stderr
    again = run(weights, *words, "--weights", f"other={weights}")
    assert again.returncode == 2 and "$ python" not in again.stdout, "before anything more is trained"


def test_labels_that_change_between_seeds_are_told(weights: Path) -> None:
    assert run(weights, "--seeds", "1").returncode == 0
    (weights.parent.parent / "root/data.json").write_text(json.dumps({"train": "more of them"}))
    done = run(weights, "--seeds", "2")
    assert done.returncode == 2 and "error: the train images or labels have changed between" in done.stderr


def test_a_drawing_that_fails_leaves_the_table(weights: Path, tmp_path: Path) -> None:
    tool = weights.parent.parent / "root/tools/train_det.py"
    failing = 'if "--predict" in argv:\n    sys.exit(sys.stderr.write("error: no room on the GPU\\n") and 2)\n'
    tool.write_text(FAKE.replace('if "--predict" in argv:\n', failing, 1))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "0.png")
    done = run(weights, "--seeds", "1", "--pictures", tmp_path / "images")
    assert done.returncode == 2 and "no room on the GPU" in done.stderr
    assert "| box AP: mine | 20.0 (1) |" in (tmp_path / "out" / "table.md").read_text()


def test_what_the_runs_warn_of_stands_under_the_table(weights: Path) -> None:
    (weights.parent.parent / "root/gaps").touch()
    told = lines(run(weights, "--seeds", "2"))
    assert told.count("warning: mine: 1 key is missing") == 1


def test_one_seed_has_no_verdict(weights: Path) -> None:
    done = run(weights, "--seeds", "1")
    assert "all labels: mine against random init: box AP +10.0: one seed, no verdict" in lines(done)
    assert not (weights.parent.parent / "out" / "pictures").exists(), "one setting is no curve"


def test_the_time_is_that_of_the_rehearsals(weights: Path) -> None:
    done = run(weights, "--seeds", "3", "--lr", "0.001,0.002", "--steps", "100")
    # 53 s a run (1 of setup, 100 steps of 0.5, 2 of evaluation), 2 starts, 2 tries and 2 further seeds
    assert "time: about 7 min 04 s in all, by rehearsals" in lines(done)
    again = run(weights, "--seeds", "3", "--lr", "0.001,0.002", "--steps", "100")
    assert again.returncode == 0 and "time:" not in again.stdout and "$ " not in again.stdout, "all is done"


def test_the_time_is_that_of_what_is_left_to_do(weights: Path) -> None:
    words = ("--lr", "0.001,0.002", "--steps", "100", "--seeds")
    assert "time: about 3 min 32 s in all, by rehearsals" in lines(run(weights, *words, "1"))
    # of each start two further seeds at the best rate; the start that has begun is not rehearsed again
    assert "time: about 3 min 32 s in all, by rehearsals" in lines(run(weights, *words, "3"))
    words = ("--lr", "0.001,0.002,0.004", *words[2:])
    # one more rate of each start, and no further seeds: which rate is the best one is not known yet
    assert "time: about 1 min 46 s in all, by rehearsals" in lines(run(weights, *words, "3"))


def test_an_encoder_that_does_not_fit_is_told_before_anything_is_trained(weights: Path) -> None:
    done = run(weights, "--seeds", "1", "depth=5")
    assert done.returncode == 2 and done.stderr == "error: the encoder is of another size\n"
    assert not list((weights.parent.parent / "out").rglob("results.json"))


def test_an_encoder_of_another_size_is_no_fair_comparison(weights: Path) -> None:
    done = run(weights, "--seeds", "1", "embed_dim=192")
    assert done.returncode == 2 and done.stderr.startswith("error: mine has embed_dim 96 and not 192: random init has")
    assert not list((weights.parent.parent / "out").rglob("results.json"))


def test_what_was_only_rehearsed_may_be_asked_for_otherwise(weights: Path) -> None:
    """A rehearsal is of its options and its file: the right file under the name of a wrong one is tried anew."""
    assert run(weights, "--seeds", "1", "--steps", "40", "embed_dim=192").returncode == 2
    assert run(weights, "--seeds", "1", "--steps", "20", "--lr", "0.001").returncode == 0
    assert run(weights, "--seeds", "1", "--steps", "10", "--lr", "0.002").returncode == 0, "shorter than before"
    (weights.parent.parent / "out" / "mine").rename(weights.parent.parent / "gone")
    assert "$ python tools/train_det.py" not in run(weights, "--seeds", "1", "--steps", "10", "--dry-run").stdout
    weights.write_bytes(b"other weights")
    done = run(weights, "--seeds", "1", "--steps", "10", "--lr", "0.002")
    rehearsed = [line for line in lines(done) if line.startswith("$ ") and "--rehearse" in line]
    assert done.returncode == 0 and len(rehearsed) == 1 and str(weights) in rehearsed[0]


def test_other_data_are_another_comparison(weights: Path) -> None:
    assert run(weights, "--seeds", "1").returncode == 0
    done = run_tool(
        compare.main, "train_det", "det_configs/demo.py", "--data", "OTHER", "--weights", weights,
        "--output", weights.parent.parent / "out",
    )  # fmt: skip
    assert done.returncode == 2 and "holds a run with other settings" in done.stderr and "OTHER" in done.stderr


def test_a_wrong_path_can_be_put_right_in_the_same_folder(weights: Path) -> None:
    def compared(data: str) -> CompletedProcess[str]:
        given = ("train_det", "det_configs/demo.py", "--data", data, "--weights", weights, "--seeds", "1")
        return run_tool(compare.main, *given, "--output", weights.parent.parent / "out")

    wrong = compared("MISSING")
    assert wrong.returncode == 2 and wrong.stderr == "error: --data MISSING does not exist\n"
    right = compared("DATA")
    assert right.returncode == 0, right.stderr


def test_more_labels_take_more_time_where_epochs_are_counted(tmp_path: Path) -> None:
    settings = (Setting(0.1, None), Setting(1.0, None), Setting(1.0, 50))
    starts = {plan.RANDOM: "none"}
    entry = {"setup_seconds": 1.0, "step_seconds": 0.5, "total_steps": 10, "whole_run": {"evaluations": 2.0}}
    entry["num_evaluations"] = 1
    for config, seconds in (("coco_3x_vit_small_random", [8.0, 53.0, 28.0]), ("demo", [8.0, 8.0, 28.0])):
        compared = Comparison("train_det", config, (), starts, settings, (None,), 1, tmp_path / config)
        file = compared.rehearsed(plan.RANDOM)
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(entry))
        assert [compared.job(plan.RANDOM, setting, None, 0).seconds for setting in settings] == seconds


def test_a_longer_run_evaluates_more_often(tmp_path: Path) -> None:
    """20 evaluations of 10,000 steps took 40 s: one after each 500."""
    settings, starts = (Setting(1.0, 10_000), Setting(1.0, 40_000)), {plan.RANDOM: "none"}
    compared = Comparison("train_det", "folder_10k_vit_small", (), starts, settings, (None,), 1, tmp_path)
    entry = {"setup_seconds": 1.0, "step_seconds": 0.5, "total_steps": 10_000, "whole_run": {"evaluations": 40.0}}
    file = compared.rehearsed(plan.RANDOM)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({**entry, "num_evaluations": 20, "eval_every": 500}))
    seconds = [compared.job(plan.RANDOM, setting, None, 0).seconds for setting in settings]
    assert seconds == [1.0 + 40.0 + 5_000, 1.0 + 160.0 + 20_000]


def test_the_config_alone_is_taken_out_of_the_options() -> None:
    for argv in (["demo", "--data", "demo", "lr=1"], ["--data", "demo", "lr=1", "demo"]):
        config = config_of("train_det", argv)
        assert config == "demo" and without_config("train_det", argv, config) == ["--data", "demo", "lr=1"]
    assert without_config("train_cls", ["--recipe", "folder"], "") == ["--recipe", "folder"]


def test_what_more_steps_lose_is_nothing_to_reach() -> None:
    """Random init is best after 10 steps: what it has after 40 is no goal that ours has reached with 10."""
    settings = (Setting(1.0, 10), Setting(1.0, 40))
    starts = {plan.RANDOM: "none", "mine": "file"}
    compared = Comparison("train_det", "c", (), starts, settings, (None,), 1, Path())
    scores = {(plan.RANDOM, 10): 30.5, (plan.RANDOM, 40): 25.5, ("mine", 10): 28.5, ("mine", 40): 16.5}
    found = {(start, Setting(1.0, steps)): {0: {"box AP": value}} for (start, steps), value in scores.items()}
    assert not any("reaches" in text for text in report.sentences(compared, found))
    found["mine", settings[0]][0]["box AP"] = 30.7
    assert not any("reaches" in text for text in report.sentences(compared, found)), "with as many steps"
    found[plan.RANDOM, settings[1]][0]["box AP"] = 30.6
    told = report.sentences(compared, found)
    assert "box AP: mine with 10 steps reaches random init with 40 steps (30.7 and 30.6, one seed, no verdict)" in told


def test_what_fewer_steps_reach_is_told_where_a_start_is_ahead_at_every_length() -> None:
    settings = tuple(Setting(1.0, steps) for steps in (10, 40, 160))
    compared = Comparison("train_det", "c", (), {plan.RANDOM: "none", "mine": "file"}, settings, (None,), 1, Path())
    scores = {(plan.RANDOM, 10): 10, (plan.RANDOM, 40): 20, (plan.RANDOM, 160): 40}
    scores |= {("mine", 10): 30, ("mine", 40): 35, ("mine", 160): 45}
    found = {(start, Setting(1.0, steps)): {0: {"box AP": value}} for (start, steps), value in scores.items()}
    told = [text for text in report.sentences(compared, found) if "reaches" in text]
    assert told == [
        "box AP: mine with 10 steps reaches random init with 40 steps (30.0 and 20.0, one seed, no verdict)"
    ]


def test_pictures_show_every_start(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(9):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    done = run(weights, "--seeds", "1", "--pictures", tmp_path / "images")
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "out" / "pictures" / "predictions.png") as picture:
        assert picture.width > 3 * 240 and picture.height > 6 * 240
    (tmp_path / "others").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "others" / "0.png")
    other = run(weights, "--seeds", "1", "--pictures", tmp_path / "others")
    assert other.returncode == 2 and "has drawn those of" in other.stderr
    shutil.rmtree(tmp_path / "out" / "pictures")
    kept = next(tmp_path.glob("out/random_init/**/predictions")) / "mine.png"
    Image.new("RGB", (20, 20)).save(kept)
    other = run(weights, "--seeds", "1", "--pictures", tmp_path / "others")
    assert other.returncode == 0, other.stderr
    assert other.stdout.count("--predict") == 2, "the drawings of before are of other images"
    assert {file.name for file in kept.parent.iterdir()} == {"0.png", "mine.png"}


def test_the_plan_alone_writes_nothing(weights: Path) -> None:
    done = run(weights, "--lr", "0.001,0.002", "--dry-run")
    assert done.returncode == 0
    assert "learning rates: 0.001, 0.002, each start goes on with the best one of seed 0" in lines(done)
    assert not (weights.parent.parent / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "0,1"], "argument --labels: '0,1' must be a share above 0 and up to 1"),
        (["--labels", "1.5"], "argument --labels: '1.5' must be a share above 0 and up to 1"),
        (["--steps", "2.5"], "argument --steps: '2.5' must be a whole number above 0"),
        (["--lr", "fast"], "argument --lr: 'fast' must be a number above 0"),
        (["--seed", "1"], "--seed cannot be given to all runs of a comparison: omit it"),
        (["--epochs", "1"], "--epochs cannot be given to all runs of a comparison: use --steps"),
        (["labels=0.1"], "labels cannot be given to all runs of a comparison: use --labels"),
        (["--weights", "rehearsals=WEIGHTS"], "--weights rehearsals="),
        (["--weights", "..=WEIGHTS"], "--weights ..="),
        (["--resume"], "--resume cannot be given to all runs of a comparison"),
        (["--same-tme"], "unknown option '--same-tme': did you mean '--same-time'?"),
        (["--label=0.1"], "unknown option '--label': did you mean '--labels'?"),
        (["--bach-size", "2"], "unknown option '--bach-size': did you mean '--batch-size'"),
        (["--weights", "none"], "--weights none: random init is always compared: omit it"),
        (["--weights", "a=nothing.pth"], "--weights a=nothing.pth: nothing.pth does not exist"),
        (["--weights", "a=lr=1/nothing.pth"], "--weights a=lr=1/nothing.pth: lr=1/nothing.pth does not exist"),
        (["--pictures", "nowhere"], "--pictures nowhere does not exist"),
        (["--output", " "], "--output is empty: name a folder"),
    ],
)
def test_wrong_options_leave_nothing_behind(weights: Path, words: list[str], message: str) -> None:
    done = run(weights, *(word.replace("WEIGHTS", str(weights)) for word in words))
    assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr
    assert done.stderr.count("\n") == 1
    assert not (weights.parent.parent / "out").exists()


def test_two_of_one_name_are_told_apart_by_names(weights: Path) -> None:
    done = run(weights, "--weights", weights)
    assert done.stderr.startswith("error: --weights: two are called mine: give them names, such as mine=")
    assert run(weights, "--weights", f"other={weights}", "--dry-run").stdout.startswith(
        "starts: random init, mine, other\n"
    )


def test_tools_are_named(weights: Path) -> None:
    for words, message in (
        ((), "TOOL is missing: train_det, train_seg, train_cls"),
        (("train_dot", "x"), "unknown tool 'train_dot': did you mean 'train_det'"),
        (("train_cls", "--labels", "0.1"), "--labels goes with train_det and train_seg"),
        (("train_cls", "--pictures", "x"), "--pictures goes with train_det and train_seg"),
    ):
        done = run_tool(compare.main, *words, "--weights", weights, "--output", "out")
        assert done.returncode == 2 and done.stderr.startswith(f"error: {message}"), done.stderr


def test_verdicts() -> None:
    assert report.verdict([[1.0, 2.0], [0.5, 0.1]]) == "ahead with each of 2 seeds"
    assert report.verdict([[-1.0, -2.0, -3.0]]) == "behind with each of 3 seeds"
    assert report.verdict([[1.0, 2.0], [0.5, -0.1]]) == "not told apart by 2 seeds", "one score of one seed is behind"
    assert report.verdict([[0.0, 2.0]]) == "not told apart by 2 seeds"
    assert report.verdict([[2.0]]) == "one seed, no verdict" and report.verdict([]) == "nothing to compare"


def test_the_lower_of_equal_rates_is_taken(tmp_path: Path) -> None:
    setting = Setting(1.0, None)
    compared = Comparison(
        "train_seg", "c.py", (), {plan.RANDOM: plan.NONE}, (setting,), (1e-3, 2e-3, 4e-3), 1, tmp_path
    )
    for rate, value in ((1e-3, None), (2e-3, 50.0), (4e-3, 50.0)):
        folder = compared.folder(plan.RANDOM, setting, rate, 0)
        folder.mkdir(parents=True)
        (folder / "results.json").write_text(json.dumps({"mIoU": value}))
    assert compared.best_rate(plan.RANDOM, setting) == 2e-3
