"""Merge methods of one round: pure functions of what all sites' fine-tuning added to the base."""
