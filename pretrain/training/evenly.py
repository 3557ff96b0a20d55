"""Which of many are looked at where all would take too long."""


def evenly(length: int, count: int) -> list[int]:
    """Returns the places of `count` items, spread evenly over `length` of them and in order; all where there are fewer.

    The first item is always among them: with more of them asked for, those of before need not be.
    """
    count = min(count, length)
    return [number * length // count for number in range(count)]
