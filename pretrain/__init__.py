"""Pre-training with SplitMask: from a folder of images to encoder.safetensors."""
