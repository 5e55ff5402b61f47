"""All that talks to the kernel about segments; no other package asks what system this is.

From top to bottom; each module imports only those below it::

    errors   the library's error for what a system call said
    maps     part of a file in the address space
    pages    the memory of a file: reserved, written, given back
    files    opening, naming, locking
    libc     the calls and constants that Python has not

What a system can do is found out by trying, and remembered; nothing is decided by its name.
The names in capitals are such findings, and the tests turn them off to take the other way.
"""
