"""Data: from files and data sets on disk to batches, whose order is a function of (seed, step)."""

from train.data.registry import kind, make

__all__ = ["kind", "make"]
