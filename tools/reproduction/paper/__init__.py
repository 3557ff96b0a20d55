"""The tables of the paper by name. Free of torch.

Every number is the paper's (arXiv 2112.10740); the settings behind the commands are those of the recipes and configs.
"""

from splitmask_backbones.errors import check_choice
from tools.reproduction.paper import classification, dense
from tools.reproduction.paper.schema import Table


def tables() -> dict[str, Table]:
    """Returns all tables by name."""
    found = [*dense.TABLES, *classification.TABLES]
    return {table.name: table for table in found}


def find_table(name: str) -> Table:
    """Returns a table.

    Raises:
        ValueError: unknown name, with the nearest right one.
    """
    known = tables()
    check_choice("table", name, known)
    return known[name]
