"""Benchmarks of the ops and of whole jobs against peers and physical limits.

``python -m bench`` measures, ``python -m bench report`` draws. One file an op over one harness.
"""
