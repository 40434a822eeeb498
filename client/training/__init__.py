"""Local fine-tuning and evaluation."""
