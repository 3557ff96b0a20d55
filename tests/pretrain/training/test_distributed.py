"""Two processes at global batch B compute what one process computes at B: loss, gradients, and the whole tool."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pretrain.training.distributed import make_fabric
from splitmask_backbones.run_files import METRICS_LOG
from tests.helpers.paths import ROOT
from tests.helpers.pretrain_tool import run

SCRIPT = """
import os, sys, torch
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from pretrain.methods.splitmask import SplitMask
from pretrain.tokenizers.codebook import Tokenizer, random_projection
from splitmask_backbones import VisionTransformer
torch.manual_seed(0)
encoder = VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=2)
method = SplitMask(encoder, Tokenizer(random_projection(32, 768, 0)))
for parameter in method.parameters():
    torch.nn.init.normal_(parameter, std=0.1)
order = torch.stack([torch.randperm(16) for _ in range(6)])
batch = {"image": torch.randint(256, (6, 3, 64, 64), dtype=torch.uint8), "ids_a": order[:, :8], "ids_b": order[:, 8:]}
model = method
if "RANK" in os.environ:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    batch = {key: value[rank * 3 : rank * 3 + 3] for key, value in batch.items()}
    model = torch.nn.parallel.DistributedDataParallel(method)
values = model(batch)
values["loss"].backward()
losses = torch.stack([values["loss_inpaint"], values["loss_match"]]).detach()
if "RANK" in os.environ:
    dist.all_reduce(losses)
    losses /= 2
if os.environ.get("RANK", "0") == "0":
    torch.save([losses, [p.grad for p in method.parameters()]], sys.argv[2])
if "RANK" in os.environ:
    dist.destroy_process_group()
"""

GRAD_CACHE = """
import sys, torch
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/tests/helpers"]
import splitmask
from pretrain.training.distributed import make_fabric
from pretrain.training.step import train_step
accumulate = int(sys.argv[3])
fabric, method = make_fabric(device="cpu"), splitmask.build()
model, wrapped = fabric.setup(method, torch.optim.SGD(method.parameters(), lr=0.0))
share = 8 // fabric.world_size
own = {name: value[fabric.global_rank * share :][:share] for name, value in splitmask.make_batch(8).items()}
size = share // accumulate
parts = ({name: value[i : i + size] for name, value in own.items()} for i in range(0, share, size))
gradients = {}
def keep(loss, grad_norm):
    gradients.update({name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None})
grad_cache = method if accumulate > 1 else None
values = train_step(fabric, model, wrapped, parts, accumulate=accumulate, approve=keep, grad_cache=grad_cache)
losses = torch.stack([values["loss_inpaint"], values["loss_match"]])
losses = fabric.all_reduce(losses, reduce_op="mean")
torch.save([losses, gradients], f"{sys.argv[2]}_{fabric.global_rank}.pt")
"""

RESUME = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pretrain.training.checkpoints import path_of, restore_newest, save_checkpoint
from pretrain.training.distributed import agree, ending_together, make_fabric
fabric = make_fabric(device="cpu")
rank = fabric.global_rank
place = Path(sys.argv[2])
cases = {"same": [], "late": [(1, 4)], "newest": [(0, 4)], "all": [(0, 2), (0, 4)], "none": None}
found = {}
for case, damaged in cases.items():
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    folder = place / f"{case}_{rank}"  # what each process sees of one folder
    folder.mkdir()
    for step in (2, 4) if damaged is not None else ():
        torch.nn.init.constant_(model.weight, step)
        save_checkpoint(folder, step, model, optimizer)
    for whose, step in damaged or ():
        if whose == rank:
            path_of(folder, step).write_bytes(b"junk") if case != "late" else path_of(folder, step).unlink()
    torch.nn.init.constant_(model.weight, 7.0)
    try:
        found[case] = [restore_newest(folder, model, optimizer, None), model.weight.detach().tolist()]
    except ValueError as error:
        found[case] = str(error)
agreed = []
for loss, grad_norm, received in ((1, 1, None), (1, 1, 15), (float("nan"), 1, None), (1, float("inf"), None)):
    own = (loss, grad_norm, received) if rank == 1 else (1, 1, None)  # what the other process does not see
    try:
        agreed.append(agree(torch.tensor(float(own[0])), torch.tensor(float(own[1])), own[2], 3))
    except ValueError as error:
        agreed.append(str(error))
torch.save([found, agreed], place / f"{rank}.pt")
"""

END = """
import atexit, sys, torch
from pathlib import Path
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from pretrain.training.distributed import gather, make_fabric
def keep():  # called last: what is registered first
    tasks = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    Path(sys.argv[2], f"{rank}.txt").write_text(f"{dist.is_initialized()} {sum('gloo' in name for name in tasks)}")
atexit.register(keep)
def main():
    fabric = make_fabric(device="cpu")
    model = torch.nn.Linear(2, 1)
    model, _ = fabric.setup(model, torch.optim.SGD(model.parameters()))
    fabric.backward(model(torch.ones(1, 2)).sum())
    model.itself = model  # a model that only the collector frees
    gather([fabric.global_rank])
    return fabric.global_rank
rank = main()
"""

SPLITMASK = ("loss", "loss_inpaint", "loss_match", "grad_norm", "token_accuracy")
ENV = {**{k: v for k, v in os.environ.items() if k != "RANK"}, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]


def call(*words):
    result = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENV, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def test_loss_and_gradients_equal_one_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    call(sys.executable, script, ROOT, tmp_path / "one.pt")
    call(*TORCHRUN, "--master-port=29531", script, ROOT, tmp_path / "two.pt")
    (loss_one, one), (loss_two, two) = (torch.load(tmp_path / f"{n}.pt") for n in ("one", "two"))
    torch.testing.assert_close(loss_one, loss_two, atol=1e-5, rtol=1e-5)
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert max(g.abs().max() for g in one) > 1e-2


def test_gradient_caching_of_two_processes_equals_one_batch(tmp_path):
    (tmp_path / "script.py").write_text(GRAD_CACHE)
    call(sys.executable, tmp_path / "script.py", ROOT, tmp_path / "whole", 1)
    call(*TORCHRUN, "--master-port=29538", tmp_path / "script.py", ROOT, tmp_path / "cached", 2)
    loss, expected = torch.load(tmp_path / "whole_0.pt")
    assert max(g.abs().max() for g in expected.values()) > 1e-2
    for rank in (0, 1):
        found, gradients = torch.load(tmp_path / f"cached_{rank}.pt")
        torch.testing.assert_close(found, loss, atol=1e-5, rtol=1e-5)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-5, msg=name)


def write_images(folder):
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")


@pytest.mark.parametrize(
    ("port", "method", "names", "more"),
    [
        (29532, "splitmask", SPLITMASK, []),
        (29536, "splitmask", SPLITMASK, ["--accumulate", 2]),  # all negatives, by gradient caching
        pytest.param(29534, "beit", ("loss", "grad_norm", "token_accuracy"), [], marks=pytest.mark.slow),
        pytest.param(29535, "dino", ("loss", "grad_norm"), [], marks=pytest.mark.slow),
    ],
)
def test_the_tool_under_torchrun(port, method, names, more, tmp_path):
    if method == "dino":
        pytest.importorskip("lightly", reason="the extra 'dino' is not installed")
    write_images(tmp_path / "images")
    tool = [ROOT / "tools/pretrain.py", "--recipe", "tiny", "--data", tmp_path / "images", "--steps", 3]
    tool += ["--method", method, "--monitor-every", 2, "--log-every", 1, "--workers", 0, "--output"]
    call(sys.executable, *tool, tmp_path / "one")
    call(*TORCHRUN, f"--master-port={port}", *tool, tmp_path / "two", *more)

    def values(file, *names):
        lines = [(tmp_path / folder / file).read_text().splitlines() for folder in ("one", "two")]
        return [[[json.loads(line)[name] for name in names] for line in part] for part in lines]

    one, two = values("metrics.jsonl", *names)
    np.testing.assert_allclose(two, one, rtol=2e-4)
    one, two = values("monitor.jsonl", "step", "effective_rank", "targets_entropy_bits")
    assert [look[0] for look in two] == [2, 3]
    np.testing.assert_allclose(two, one, rtol=1e-3)
    assert (tmp_path / "two/encoder.safetensors").exists()


def test_the_tool_under_torchrun_with_a_cache_and_resumed(tmp_path):
    """The losses of one process without a cache; a damaged newest checkpoint is nobody's start, and the bytes stay."""
    write_images(tmp_path / "images")
    words = ["--recipe", "tiny", "--data", tmp_path / "images", "--steps", 4, "--save-every", 1, "--log-every", 1]
    assert run(*words, "--workers", 0, "--output", tmp_path / "one").returncode == 0
    output = tmp_path / "two"
    tool = [ROOT / "tools/pretrain.py", *words, "--workers", 0, "--cache", tmp_path / "cache", "--output", output]
    call(*TORCHRUN, "--master-port=29539", *tool)
    assert list((tmp_path / "cache").iterdir())
    one, two = ([json.loads(line) for line in (tmp_path / name / METRICS_LOG).open()] for name in ("one", "two"))
    assert [entry["loss"] for entry in two] == pytest.approx([entry["loss"] for entry in one], rel=2e-4)
    weights = load_file(output / "encoder.safetensors")
    (output / "encoder.safetensors").unlink()
    (output / "checkpoints/step_00000004.safetensors").write_bytes(b"junk")
    said = call(*TORCHRUN, "--master-port=29540", *tool, "--resume")
    assert said.count("the one before it is used") == 1
    assert [json.loads(line)["loss"] for line in (output / METRICS_LOG).open()] == [entry["loss"] for entry in two]
    again = load_file(output / "encoder.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(again[name], value) for name, value in weights.items())


def test_all_resume_from_what_the_main_process_finds_or_none_does(tmp_path):
    (tmp_path / "script.py").write_text(RESUME)
    call(*TORCHRUN, "--master-port=29537", tmp_path / "script.py", ROOT, tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for found, agreed in ranks:
        assert agreed[:2] == [0, 15], "a signal that one process has received"
        assert all("the loss is not finite at step 4" in said for said in agreed[2:])
        assert found["same"] == [4, [[4.0, 4.0]]] and found["none"] == [0, [[7.0, 7.0]]]
        assert found["newest"] == [2, [[2.0, 2.0]]], "the other one's is whole, and does not count"
        assert "rank 1 cannot read what rank 0 resumes from" in found["late"] and "--resume once" in found["late"]
        assert "no checkpoint in" in found["all"] and "2 damaged" in found["all"]


def test_no_thread_of_the_process_group_outlives_python(tmp_path):
    """One that frees a collective's tensors while Python ends aborts the process."""
    (tmp_path / "script.py").write_text(END)
    call(*TORCHRUN, "--master-port=29544", tmp_path / "script.py", ROOT, tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["False 0", "False 0"]


SEG_CONFIG = """
_base_ = ["{root}/seg_configs/demo.py"]
class_weights = None  # a weighted mean of each process's pixels is no mean of all pixels
model = dict(
    backbone=dict(embed_dim=24, depth=2, out_channels=8, drop_path_rate=0.0),
    # On CPUs, batch statistics are each process's own.
    decode_head=dict(channels=8, norm_cfg=dict(_delete_=True, type="GN", num_groups=2), dropout_ratio=0.0),
)
"""


def test_train_seg_under_torchrun(tmp_path):
    pytest.importorskip("mmcv", reason="the extra 'segmentation' is not installed")
    from tests.helpers.seg_data import make_data

    data = make_data(tmp_path / "data", count=5, size=(80, 72))
    (data / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    (tmp_path / "config.py").write_text(SEG_CONFIG.format(root=ROOT))
    tool = [ROOT / "tools/train_seg.py", tmp_path / "config.py", "--data", data, "--weights", "none", "--steps", 4]
    tool += ["--batch-size", 4, "--img-size", 64, "--log-every", 1, "--workers", 0, "eval_every=2", "--output"]
    call(sys.executable, *tool, tmp_path / "one")
    call(*TORCHRUN, "--master-port=29533", *tool, tmp_path / "two")

    def values(folder, file, *names):
        lines = [json.loads(line) for line in (tmp_path / folder / file).read_text().splitlines()]
        return [[line[name] for name in names] for line in lines]

    names = ("step", "loss", "pixel_accuracy", "lr", "grad_norm")
    one, two = (np.array(values(folder, "metrics.jsonl", *names)) for folder in ("one", "two"))
    assert one.shape == (4, 5) and one[0, 1] != pytest.approx(one[-1, 1], rel=1e-3)
    np.testing.assert_allclose(two, one, rtol=2e-4)
    # five images for two processes: the last share is filled up, and what fills it does not count
    one, two = (np.array(values(folder, "evaluations.jsonl", "step", "mIoU", "aAcc")) for folder in ("one", "two"))
    assert one.shape == (2, 3)
    np.testing.assert_allclose(two, one, rtol=2e-3)
    weights = [load_file(tmp_path / folder / "checkpoints/step_00000004.safetensors") for folder in ("one", "two")]
    assert list(weights[0]) == list(weights[1])
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, atol=1e-4, rtol=1e-3, msg=name)
    report = json.loads((tmp_path / "two/data_report.json").read_text())
    assert report["train"]["images"] == 5


@pytest.mark.parametrize(
    ("units", "precision", "said"), [(False, "bf16", True), (True, "bf16", False), (False, "32", False)]
)
def test_bf16_on_a_cpu_without_it_is_said(units, precision, said, monkeypatch, caplog):
    flags = {"architecture": "x86_64", "avx512_bf16": units, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    make_fabric(precision, "cpu")
    assert ("--precision 32" in caplog.text) == said
