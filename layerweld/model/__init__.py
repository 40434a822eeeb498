"""The base model and its linear layers: loaded, planned, run block by block."""
