"""What runs CPython's own tests of its pools with other classes in the place of theirs."""

import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
