"""The mean and standard deviation that pixels are normalised with; imports nothing.

mmseg's configs repeat them in levels of 0 to 255, as a file that is read alone has to.

ImageNet's channel statistics, which the published ViTs of DeiT, DINO, MAE and BEiT v2 expect (BEiT v1 and timm's
"inception" variants have 0.5 for both); detectors that use our encoder have to normalise with the same numbers.
"""

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""Mean of the R, G, B channels of pixels in [0, 1]."""

IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Standard deviation of the R, G, B channels of pixels in [0, 1]."""
