"""The jobs of a demo: pre-training, then each head from random init and from SplitMask, then what they predict."""

from pathlib import Path

from tools.demos.inputs import Inputs
from tools.running.job import ENCODER, RESULTS, Job
from tools.running.predictions import copy_numbered, prediction_job

STARTS = {"none": "random init", "splitmask": "SplitMask"}
HEADS = ("det", "seg")


def demo_jobs(output: Path, inputs: Inputs, num_steps: dict[str, int | None], seed: int, workers: int) -> list[Job]:
    """Returns the jobs "pretrain", "det_none", "det_splitmask", ..., each with a folder of its name in `output`.

    Copies the pictures to look at, because the last jobs name their folder.

    Args:
        output: folder of the demo.
        inputs: the images.
        num_steps: of "pretrain", of each "det" and of each "seg"; None leaves it to the recipe or config.
        seed: of every job.
        workers: data processes.
    """
    common = ["--seed", str(seed), "--workers", str(workers), "--save-every", "50", "--log-every", "10"]

    def job(name: str, tool: str, argv: list[str], artefact: str, needs: tuple[str, ...] = ()) -> Job:
        length = num_steps[name.split("_")[0]]
        steps = [] if length is None else ["--steps", str(length)]
        return Job(name, tool, (*argv, *common, *steps), output / name, artefact, needs, num_steps=length)

    pretraining = job("pretrain", "pretrain.py", ["--recipe", "demo", *inputs.pretrain], ENCODER)
    weights = {"none": "none", "splitmask": str(pretraining.folder / ENCODER)}
    data = {"det": inputs.detection}
    if inputs.segmentation is not None:
        data["seg"] = ["--data", str(inputs.segmentation)]
    pictures = output / "data" / "pictures"
    count = len(copy_numbered(inputs.pictures, pictures))
    jobs, predictions = [pretraining], []
    for head, named in data.items():
        tool, config = f"train_{head}.py", f"{head}_configs/demo.py"
        for start, file in weights.items():
            needs = (pretraining.name,) if start == "splitmask" else ()
            training = job(f"{head}_{start}", tool, [config, *named, "--weights", file], RESULTS, needs)
            jobs.append(training)
            predictions.append(prediction_job(training.name, tool, (config,), training.folder, pictures, count))
    return jobs + predictions
