"""AdamW with layer-wise learning rates, linear warm-up and polynomial decay (BEiT's UperNet protocol).

The lengths are shares of `steps`, so that another number of steps cannot leave the schedule stale. batch_size counts
the images of a step, and another one (--batch-size) scales the lr linearly unless the lr is given too.
"""

steps = 160000
batch_size = 16
seed = 0
labels = 1.0  # share of the training images that is used, drawn by seed: smaller ones are part of larger ones
schedule = dict(warmup_fraction=1500 / 160000, power=1.0)
optim_wrapper = dict(
    type="OptimWrapper",
    # lr and decay_rate are BEiT's for encoders that saw no labels; mmseg's MAE config has 1e-4.
    optimizer=dict(type="AdamW", lr=7e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    constructor="SplitMaskLayerDecay",
    paramwise_cfg=dict(decay_rate=0.65),
    clip_grad=dict(max_norm=3.0),  # ours: BEiT does not clip here; it also yields the grad_norm of the log
)
# "median_frequency": rare classes weigh more in the loss, by the pixels of the training labels;
# "sqrt_median_frequency": the roots of those weights, where frequent classes would lose too many pixels.
class_weights = None
log_every = 50
save_every = 2000
eval_every = None  # steps between evaluations: evaluations.jsonl, and the best segmentor so far is kept
accumulate = 1  # micro-batches per step: for missing GPUs
find_unused_parameters = False  # True: for models with parameters that a step leaves without a gradient
ema = None  # or the decay of an average of the weights, which is evaluated and kept
