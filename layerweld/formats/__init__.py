"""Adapters, model folders, merges and cards on disk."""
