"""Points the build backend at the C++ sources; everything else is in pyproject.toml."""

from setuptools import setup

setup(cmake_source_dir="csrc")
