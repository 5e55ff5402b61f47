"""What runs CPython's own tests of its pools with other classes in the place of theirs."""
