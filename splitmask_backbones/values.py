"""What `key=value` on a command line means. Free of torch."""

import ast
from typing import Any

WITH_NONE = ("positions", "relative_position_bias", "norm", "class_weights")
"""Arguments of which "none" is a choice, and not the lack of a value."""
_WORDS = {"true": True, "false": False, "none": None, "null": None}


def parse_value(key: str, text: str) -> Any:
    """Returns a Python literal, or true, false or none in upper or lower case, as the value that it is; else the text.

    Args:
        key: dotted; its last part is the argument's name.
    """
    word = text.lower()
    if word == "none" and key.rpartition(".")[2] in WITH_NONE:
        return word
    if word in _WORDS:
        return _WORDS[word]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
