"""Runs CPython's own tests of its pools with other classes in place of theirs."""
