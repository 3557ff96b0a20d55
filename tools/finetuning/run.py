"""The skeleton of the fine-tuning tools: train and evaluate a model, or use a trained one.

config.json of all three tools has the same layout: `command`, `config` or `recipe` (its name), `--weights` (digest),
the values that decide the result, `encoder` (constructor arguments), `data` (what identifies it), and `free` (what does
not change the result).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pretrain.training.distributed import gather, machine_record
from pretrain.training.ema import averaged
from pretrain.training.loader import check_divisible, steps_per_epoch
from pretrain.training.loop import batches_of, fit
from pretrain.training.loop_config import Loop
from pretrain.training.run_folder import RunFolder, check_command, read_object, write_json
from pretrain.training.signals import StopSignals
from splitmask_backbones.checkpoints import save_encoder
from splitmask_backbones.errors import UserError
from splitmask_backbones.run_files import DATA_REPORT, ENCODER, LOAD_REPORT, REHEARSAL_RECORD, RESULTS
from tools import cli
from tools.common.load_table import mark, name_new_parts, tell
from tools.finetuning.best import is_recorded
from tools.finetuning.evaluations import Evaluations, measured
from tools.finetuning.model_files import save_model, weights_digest
from tools.finetuning.options import FinetuneOptions
from tools.finetuning.pictures import open_pictures
from tools.finetuning.task import Task
from tools.finetuning.trained import load_newest, recorded, use_run

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SPLITS = ("train", "val")


def run(task: Task) -> None:
    """Trains, or uses what was trained."""
    cli.start_log()
    if task.options.trains:
        _train(task)
    else:
        _use(task)


def _train(task: Task) -> None:
    """Trains from the start or the newest checkpoint, evaluates, and writes results.json last."""
    options = task.options
    digest = weights_digest(options.weights)
    task.find_data(SPLITS)
    artefact, anew = (REHEARSAL_RECORD, True) if options.rehearse else (RESULTS, False)
    with StopSignals(), RunFolder.open(options.output, resume=options.resume, artefact=artefact, anew=anew) as folder:
        task.previous = folder.previous or {}
        task.recipe = recipe = _recipe_of(task)
        fabric = task.fabric()
        check_divisible(recipe.batch_size, fabric.world_size, recipe.accumulate)
        data = task.check_data(folder, fabric)
        torch.manual_seed(recipe.seed)
        model: Any = task.build(options.weights)
        config = {
            "command": task.command,
            task.name_key: task.name,
            "--weights": digest,
            **task.values(),
            "encoder": model.encoder.config,
            "data": data,
            **({"rehearsal": True} if options.rehearse else {}),
            "free": _free(options, fabric) | {"deterministic": task.is_deterministic} | task.free(),
        }
        train_set: Any = task.train_set()
        num_images = len(train_set) if task.rehearsal is None else task.rehearsal.num_images["train"]
        if folder.previous is not None:  # values other than the run's are told first
            folder.write_config(config)
        per_epoch = steps_per_epoch(num_images, recipe.batch_size)
        if folder.previous is None:
            folder.write_config(config)
        if folder.finished:
            cli.say(folder, f"{folder.path / RESULTS} is finished: nothing to do")
            if options.predict is not None:
                load_newest(task, model, folder.path, fabric)
        else:
            model = _fit(task, fabric, model, train_set, per_epoch, folder, config)
        _predict(task, model, folder, fabric)


def _recipe_of(task: Task) -> Any:
    """Returns the values of a run; on a resume, those that are omitted stay what they were."""
    previous = task.previous
    if not previous:
        return task.base.override(task.given)
    check_command(previous, task.command)
    if previous.get(task.name_key) != task.name:
        key = "--recipe" if task.name_key == "recipe" else "config"
        raise UserError(
            f"--resume: the run in --output has {key} {previous.get(task.name_key)} and not {task.name}: "
            "name the old one, or choose another --output"
        )
    return recorded(task, previous).override(task.given)


def _free(options: FinetuneOptions, fabric: Fabric) -> dict[str, Any]:
    return {
        "weights": "none" if options.weights is None else str(options.weights),
        "workers": options.workers,
        "save_every": options.save_every,
        "log_every": options.log_every,
        "max_bad_fraction": options.max_bad_fraction,
        **machine_record(fabric),
    }


def _report(task: Task, folder: RunFolder) -> None:
    """Writes data_report.json, or replaces the entries of the splits that were read."""
    if not folder.is_main:
        return
    path = folder.path / DATA_REPORT
    write_json(path, read_object(path) | task.data_report())


def _fit(
    task: Task, fabric: Fabric, model: Any, train_set: Any, per_epoch: int, folder: RunFolder, config: dict[str, Any]
) -> Any:
    """Trains and evaluates; returns the model that is kept: the averaged one where the recipe has an average."""
    recipe, options = task.recipe, task.options
    _report(task, folder)
    load_report = model.encoder.load_report
    if folder.is_main and load_report is not None:
        name_new_parts(load_report, model, model.encoder)
        tell(load_report, folder.path / LOAD_REPORT)
    total_steps = recipe.total_steps(per_epoch)
    cli.say(
        folder,
        f"{len(train_set)} images, {total_steps} steps of {recipe.batch_size} ({total_steps / per_epoch:.1f} epochs), "
        f"peak lr {recipe.lr:.3g}, {fabric.device}",
    )
    average = None if recipe.ema is None else averaged(model, recipe.ema, fabric.device)
    kept: Any = model if average is None else average.module
    public = {key: value for key, value in config.items() if key != "free"}
    evaluations = Evaluations(task, fabric, folder, kept, public)
    rehearsal = task.rehearsal
    eval_every = None if rehearsal else recipe.eval_every
    loop = Loop.of(recipe, options, total_steps, per_epoch, eval_every=eval_every)
    if rehearsal:
        rehearsal.begin_training()
    fit(
        fabric,
        model,
        task.optimizer(model, fabric.device),
        loop=loop,
        lr_at=lambda step: recipe.lr_factor(step, total_steps),
        batches=batches_of(train_set, loop, fabric, options.workers, task.collate(), task.repeats()),
        folder=folder,
        metric_names=model.metric_names,
        title=task.noun,
        average=average,
        evaluate=evaluations.scalars,
        is_evaluated=lambda step: is_recorded(folder.path, step),
        after_step=[rehearsal.after_step] if rehearsal else (),
        more_follows=True,
    )
    if rehearsal:
        _end_rehearsal(task, fabric, kept, folder, loop, recipe.eval_every)
        return kept
    if folder.is_main:
        save_model(folder.path / f"{task.noun}.safetensors", kept, public)
        if task.keeps_encoder:
            save_encoder(kept.encoder, folder.path / ENCODER)
    results = evaluations.at_the_end(total_steps)
    if folder.is_main and results is not None:
        write_json(folder.path / RESULTS, mark(results, load_report))
        cli.say(folder, f"wrote {folder.path / RESULTS}")
    fabric.barrier()
    return kept


def _end_rehearsal(
    task: Task, fabric: Fabric, model: Any, folder: RunFolder, loop: Loop, eval_every: int | None
) -> None:
    """Evaluates what a rehearsal has trained, as the run will be, and writes rehearsal.json."""
    rehearsal = task.rehearsal
    assert rehearsal is not None
    if folder.is_main:
        rehearsal.end_training(folder.path)
    measured(task, fabric, model, folder, final=True)
    if not folder.is_main:
        return
    rehearsal.evaluated()
    num_evaluations = 1 + ((loop.total_steps - 1) // eval_every if eval_every else 0)
    entry = rehearsal.record(task.command, loop, fabric, task.recipe.precision, num_evaluations, eval_every)
    rehearsal.write(folder, entry)


def _predict(task: Task, model: nn.Module, folder: RunFolder, fabric: Fabric) -> None:
    if task.options.predict is None:
        return
    pictures = open_pictures(task.options.predict, folder.path / "predictions", task.value_range)
    shown = task.predict(fabric, model.eval(), pictures)
    together = {name: found for part in gather([pictures.found]) for name, found in part.items()}
    pictures.found = {name: together[name] for name in pictures.images.names if name in together}
    if pictures.found and folder.is_main:
        pictures.write()
    cli.say(folder, f"wrote {len(pictures.images)} pictures with {shown} to {pictures.output}")


def _use(task: Task) -> None:
    """Evaluates (`--eval-only`) and draws (`--predict`) with the newest weights of a run."""
    options = task.options
    with StopSignals(), RunFolder.open(options.output, resume=True, artefact=RESULTS) as folder:
        config = folder.previous or {}
        model = use_run(task, config)
        fabric = task.fabric()
        source = load_newest(task, model, folder.path, fabric)
        cli.say(folder, f"using {source} of {folder.path}")
        if options.best:
            task.weights_suffix = "_best"
        elif source != f"{task.noun}.safetensors":
            task.weights_suffix = f"_{source.split()[-1]}"
        if options.eval_only:
            task.find_data(("val",))
            is_same = task.check_data(folder, fabric).get("val") == config["data"].get("val")
            task.is_other = not is_same or _values_differ(task)
            if not task.is_other:
                _report(task, folder)
            results = measured(task, fabric, model, folder, final=True)
            if folder.is_main and results is not None:
                # results.json marks a finished run: an unfinished one gets a file of its own, and can still be resumed.
                path = folder.path / f"{Path(RESULTS).stem}{task.weights_suffix}{task.results_suffix()}.json"
                write_json(path, results | _warning(folder))
                what = "other data or values than the run's: " if task.is_other else ""
                cli.say(folder, f"{what}wrote {path}")
        _predict(task, model, folder, fabric)


def _values_differ(task: Task) -> bool:
    """Returns whether a run is used with other values than its own; those of `results_suffix` do not count."""
    own = recorded(task, task.previous)
    used, task.recipe = task.values(), own.override({name: v for name, v in task.given.items() if name == "tta"})
    kept, task.recipe = task.values(), own.override(task.given)
    return used != kept


def _warning(folder: RunFolder) -> dict[str, Any]:
    """Returns what `mark` puts into the results of the run, which may not be finished."""
    results = read_object(folder.path / LOAD_REPORT) | read_object(folder.path / RESULTS)
    return {name: results[name] for name in ("warning",) if name in results}
