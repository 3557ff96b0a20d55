"""What the detector, the segmentor and the classifier share."""
