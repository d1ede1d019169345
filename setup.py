"""Packages `zoo`, `train` and `configs`, and the command `zoo`; everything about them is in pyproject.toml."""

from setuptools import setup

setup()
