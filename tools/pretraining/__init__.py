"""What tools/pretrain.py is made of, beside the parser."""
