"""The Flower app: see README.md for which folder holds what."""
