"""The paper's tables: published values, columns, names."""

from __future__ import annotations

from tools.reproduction.paper import classification, dense, find_table, tables
from tools.reproduction.paper.schema import BASE, SMALL, Origin, encoder_of


def test_every_table_is_found_by_its_name() -> None:
    listed = [*dense.TABLES, *classification.TABLES]
    assert [find_table(table.name) for table in listed] == listed == list(tables().values())


def test_beit_published_no_small_encoder() -> None:
    assert encoder_of("beit_imagenet", BASE, "coco") == Origin("published", BASE, "beit", "imagenet")
    dalle = (("tokenizer", "dalle"),)
    assert encoder_of("beit_imagenet", SMALL, "coco") == Origin("pretrain", SMALL, "beit", "imagenet", dalle)
    assert encoder_of("splitmask_target", SMALL, "cars") == Origin("pretrain", SMALL, "splitmask", "cars")


def test_the_papers_values_stand_where_they_belong() -> None:
    """Samples from each table, read off PAPER's tables by hand."""

    def value(table: str, row: str, column: str) -> float:
        return next(cell.value for cell in find_table(table).row(row).cells if cell.column == column)

    assert value("coco", "vit_small_random_6x", "mask AP75") == 41.7
    assert value("coco", "vit_base_beit_coco", "box AP75") == 51.2
    assert value("coco", "vit_base_splitmask_coco", "mask AP") == 42.1
    assert value("ade20k", "vit_base_random", "mIoU") == 25.4
    assert value("ablation", "match", "linear") == 4.0
    assert value("imagenet", "splitmask", "ViT-S") == 81.5
    assert value("imagenet", "beit_800", "ViT-B") == 83.2
    assert value("samples", "dino", "100 %") == 78.4
    assert value("samples", "splitmask", "COCO") == 76.3
    assert value("finetuning", "vit_base_beit_target", "Painting") == 70.7
    assert value("finetuning", "vit_small_splitmask_target", "Cars") == 92.8
    assert value("transfer", "cars", "Food-101") == 87.0
    assert value("tokenizer", "kmeans", "iNat-19") == 75.0
    counts = {name: sum(len(row.cells) for row in table.rows) for name, table in tables().items()}
    # 7 sets in 10 rows without the 4 that the paper leaves out; 4 methods on 4 shares without supervised COCO.
    assert counts == {
        "coco": 84,
        "ade20k": 5,
        "finetuning": 66,
        "imagenet": 8,
        "transfer": 28,
        "samples": 15,
        "ablation": 12,
        "tokenizer": 4,
    }


def test_equal_cells_of_different_tables_agree() -> None:
    """Tables repeat numbers: what is measured alike has one published value, the random rows of Table 5 aside."""
    values: dict[object, set[float]] = {}
    for table in tables().values():
        for row in table.rows:
            for cell in row.cells:
                values.setdefault(cell.measured, set()).add(cell.value)
    different = {key: found for key, found in values.items() if len(found) > 1}
    assert not different


def test_origins_have_names_of_their_own() -> None:
    origins = {cell.measured.origin for t in tables().values() for row in t.rows for cell in row.cells}
    assert len({origin.name for origin in origins}) == len(origins)
    assert Origin("published", "vit_base", "deit", "imagenet").name == "deit_base"
