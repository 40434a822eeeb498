"""Merge fine-tuned models layer by layer from statistics that sites compute on their own data."""

__version__ = "0.1.0"
