"""Families that can be read and targets that can be written. Free of torch, for the command line."""

FAMILIES = ("timm", "deit", "beit", "dino", "mae", "mocov3", "vitdet", "hf", "splitmask")
TARGETS = ("splitmask", "timm", "detectron2", "mmseg", "hf")
