"""Your own pictures, UperNet, ViT-S: ROOT/images/{train*,val*}, ROOT/annotations/{train*,val*} and the classes' names.

    python tools/train_seg.py seg_configs/folder_20k_vit_small.py --data ROOT --classes classes.json \
        --weights encoder.safetensors --output DIR --precision bf16

classes.json (or ROOT/classes.json, without the option) is a list of names, or {"classes": [...], "palette": [[r, g, b],
...], "reduce_zero_label": true}. Other folders and file names: see tools/segmentation/layout.py. Meant for one GPU of
24 GB; not run by us yet.
"""

_base_ = ["./_base_/ade20k.py"]

model = dict(backbone=dict(encoder="vit_small", pyramid="simple", norm="LN"), decode_head=dict(channels=512))
steps = 20000
eval_every = 2000
