"""The small study, from the plan to its table and pictures."""

import sys

from tools.finetuning import plots
from tools.reproduction import announce, study_report
from tools.reproduction.study import LONGER, ROWS, Study, picture_jobs, study_jobs
from tools.running.executor import Executor
from tools.running.folder import run_plan


def make_study(study: Study, at_once: int, dry_run: bool) -> int:
    """Prints the plan of a study, carries it out, writes table and pictures; returns the exit code.

    Args:
        study: size, rows, data, folders.
        at_once: jobs at the same time.
        dry_run: print the plan and stop.

    Raises:
        ValueError: data are missing, or the folder holds something else.
    """
    budget, output = study.budget, study.output
    jobs = study_jobs(study)
    announce.say([f"the small study, size {study.size}, {study.seeds} seeds", *announce.command_lines(jobs)])
    announce.say(announce.study_estimate(jobs, output, at_once, budget.hardware))
    if LONGER in study.rows:
        more = {data: budget.finetuning_steps(data, LONGER) - budget.finetune[data].steps for data in study.sets}
        told = " and ".join(f"{count} on {data}" for data, count in more.items())
        title = ROWS[LONGER].title
        announce.say([f"{title}: as many more steps as fit in the time of a pre-training: {told}"])
    executor = Executor(output, at_once, threads=1 if study.size == "cpu" else None)
    executor.check(jobs)
    if dry_run:
        return 0
    config = {"command": "reproduce", "values": {"make": f"study {study.size}"}}
    code = run_plan(executor, jobs + picture_jobs(study), config, lambda: study_report.choose_pictures(study))
    if code == 0:
        _report(study)
    return code


def _report(study: Study) -> None:
    output = study.output
    rows = study_report.finished_rows(output, study.rows)
    values = study_report.read_values(output, rows)
    header, body = study_report.write_table(output, values, rows, study.budget)
    study_report.save_points(values, rows, output / study_report.FOLDER / "points.png")
    study_report.save_grids(study)
    if sys.stdout.isatty():  # lengths stand in the file: a terminal is narrow
        width = 1 + len(values)
        plots.print_table("the small study", study_report.CAPTION, header[:width], [line[:width] for line in body])
    else:
        sys.stdout.write((output / "table.md").read_text(encoding="utf-8"))
    announce.say([f"table: {output / 'table.md'}, pictures: {output / study_report.FOLDER}"])
