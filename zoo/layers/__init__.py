"""Layers: the parts that every family is built of, one idea a file."""
