"""Classification: fine-tuning on labelled images, and probes of a frozen encoder."""
