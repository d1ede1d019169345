"""Evaluations of a model, and the metrics they report."""
