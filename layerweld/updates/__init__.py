"""What fine-tuning added to a model: low-rank and dense updates, and their sums."""
