"""What users would write or install instead, each in a few plain lines.

tests/test_bench.py holds every peer to the reference: the time of a wrong peer says nothing.
"""
