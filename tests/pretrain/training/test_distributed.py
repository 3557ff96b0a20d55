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
from tests.helpers.paths import ROOT

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

SPLITMASK = ("loss", "loss_inpaint", "loss_match", "grad_norm", "token_accuracy")
ENV = {**{k: v for k, v in os.environ.items() if k != "RANK"}, "OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]


def call(*words):
    result = subprocess.run([str(w) for w in words], capture_output=True, text=True, env=ENV, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr


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
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(16):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / f"images/{i}.png")
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
