"""What can be read and what can be written, by name. Free of torch, for the command line."""

PLAIN = ("timm", "deit", "dino", "mae", "mocov3")
"""Families of the same layout: a bare encoder file of one looks like that of another."""

FAMILIES = ("timm", "deit", "beit", "dino", "mae", "mocov3", "vitdet", "hf", "splitmask")
"""Families that can be read."""

GRAPHS = {"onnx": ".onnx", "exported": ".pt2"}
"""Targets that are not weights but a graph that runs by itself, with the suffix of their files."""

TARGETS = ("splitmask", "timm", "detectron2", "mmseg", "hf", *GRAPHS)
"""What can be written."""

MODEL_CARD = "MODEL_CARD.md"
"""What an encoder file was made of, beside it: the model card of a pre-training run."""

HUB_CARD = "README.md"
"""What the Hugging Face hub reads as the card of a folder."""
