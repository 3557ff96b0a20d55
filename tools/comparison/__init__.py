"""Which start is best for your data: one fine-tuning from each, and what they reached side by side."""
