"""The Flower strategy that merges in rounds, and every method as its rounds."""

from strategies.chain_of_merges import ChainOfMerges

__all__ = ["ChainOfMerges"]
