"""Tables with the paper's values beside ours: Markdown, CSV, rich for a terminal."""

from collections.abc import Mapping, Sequence

from tools.common.plots import markdown_table
from tools.common.spread import cells, csv_text, listed, shown
from tools.reproduction.paper.schema import Table
from tools.reproduction.results import Filled, Other
from tools.reproduction.runs import Run

Cells = Mapping[tuple[str, str], Filled]
HEADER = (
    "table", "row", "column", "paper", "mean", "spread", "n", "seeds", "values", "deviations", "runs",
)  # fmt: skip


def lines(table: Table, measured: Cells) -> tuple[list[str], list[list[str]], list[str]]:
    """Returns header, rows and footnotes: two lines per row, the paper's values and ours, with footnote marks."""
    footnotes: dict[str, int] = {}
    rows = []
    for row in table.rows:
        paper = {cell.column: f"{cell.value:g}" for cell in row.cells}
        ours = {}
        for column in paper:
            filled = measured.get((row.name, column))
            if filled is None:
                ours[column] = "-"
                continue
            marks = [footnotes.setdefault(remark, len(footnotes) + 1) for remark in filled.remarks]
            mark = f" [{', '.join(map(str, sorted(marks)))}]" if marks else ""
            ours[column] = shown(filled.values) + mark
        rows.append([row.title, "paper", *(paper.get(column, "") for column in table.columns)])
        rows.append(["", "ours", *(ours.get(column, "") for column in table.columns)])
    return ["row", "", *table.columns], rows, [f"[{number}] {text}" for text, number in footnotes.items()]


def caption(table: Table) -> str:
    """Returns the line below a table."""
    return f"{table.unit}; ours: mean ± standard deviation over seeds (number of runs)"


def other_lines(found: Sequence[Other]) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the runs that are in no row."""
    rows = []
    for other in found:
        numbers = ", ".join(f"{name} {shown(values)}" for name, values in other.values.items() if values)
        folders = ", ".join(str(run.folder) for run in other.runs)
        rows.append([other.title, numbers, listed(other.remarks) or "-", folders])
    return ["run", "results", "deviations", "folders"], rows


def markdown(filled: Sequence[tuple[Table, Cells]], found: Sequence[Other]) -> str:
    """Returns all tables in Markdown."""
    parts = []
    for table, measured in filled:
        header, rows, footnotes = lines(table, measured)
        text = f"## {table.title}\n\n{markdown_table(header, rows)}\n{caption(table)}\n"
        parts.append(text + "".join(f"\n{note}\n" for note in footnotes))
    if found:
        header, rows = other_lines(found)
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
        body = [header, [":---"] * len(header), *rows]
        parts.append("## Other runs\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in body))
    return "\n".join(parts)


def comma_separated(filled: Sequence[tuple[Table, Cells]], found: Sequence[Other]) -> str:
    """Returns one line per cell; numbers unrounded, lists with a semicolon between."""
    body: list[list[object]] = []
    for table, measured in filled:
        for row in table.rows:
            for cell in row.cells:
                got = measured.get((row.name, cell.column))
                ours = _ours([], [], []) if got is None else _ours(got.runs, got.values, got.remarks)
                body.append([table.name, row.name, cell.column, f"{cell.value:g}", *ours])
    for other in found:
        for name, values in other.values.items():
            if values:
                body.append(["other runs", other.title, name, "", *_ours(other.runs, values, other.remarks)])
    return csv_text([HEADER, *body])


def _ours(runs: Sequence[Run], values: Sequence[float], remarks: Sequence[str]) -> list[object]:
    seeds, folders = [run.values.get("seed") for run in runs], [run.folder for run in runs]
    return [*cells(values), listed(seeds), listed(values), listed(remarks), listed(folders)]


def show(filled: Sequence[tuple[Table, Cells]], found: Sequence[Other]) -> None:
    """Prints all tables to a terminal."""
    for table, measured in filled:
        header, rows, footnotes = lines(table, measured)
        _print(table.title, caption(table), header, rows, footnotes)
    if found:
        _print("Other runs", None, *other_lines(found), [])


def _print(
    title: str, below: str | None, header: Sequence[str], rows: Sequence[Sequence[str]], footnotes: Sequence[str]
) -> None:
    from rich.console import Console
    from rich.table import Table as Screen

    console, screen = Console(highlight=False), Screen(title=title, caption=below)
    for index, name in enumerate(header):
        is_number = below is not None and index > 1
        screen.add_column(name, justify="right" if is_number else "left", overflow="ellipsis" if below else "fold")
    for row in rows:
        screen.add_row(*(cell.replace("[", "\\[") for cell in row), end_section=row[1] == "ours")
    console.print(screen)
    for note in footnotes:
        console.print(note, markup=False)
