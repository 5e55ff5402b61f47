"""Functions and objects of badly behaved programs, for tests of how pools handle them."""

import os
import signal
import time


class Raises:
    """Raises in several methods, and when pickled if requested."""

    def __init__(self, what, error=ValueError):
        self.what, self.error = what, error

    def __reduce__(self):
        if self.what == "reduce":
            raise self.error("no pickle")
        return Raises, (self.what, self.error)

    def __repr__(self):
        raise self.error("no repr")

    __str__ = __repr__

    def __hash__(self):
        raise self.error("no hash")

    def __eq__(self, other):
        raise self.error("no comparison")

    def __bool__(self):
        raise self.error("no truth")


class RaisesWhenNamed:
    """A callable whose name cannot be read."""

    def __init__(self, error=ValueError):
        self.error = error

    def __reduce__(self):
        return RaisesWhenNamed, (self.error,)

    def __getattribute__(self, name):
        if name in {"__qualname__", "__module__", "__name__"}:
            raise object.__getattribute__(self, "error")("no name")
        return object.__getattribute__(self, name)

    def __call__(self, *_):
        os.kill(os.getpid(), signal.SIGKILL)


class ApiError(Exception):
    """Cannot be unpickled: its constructor requires two arguments."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class Silent(Exception):  # noqa: N818
    """Has no text and cannot be pickled."""

    def __reduce__(self):
        raise ValueError("no pickle")

    def __str__(self):
        raise KeyboardInterrupt("no text")

    __repr__ = __str__


def raise_api_error():
    raise ApiError(503, "the server is on fire")


class TurningError(Exception):
    """Unpickles as something else."""

    def __reduce__(self):
        return self.args


def raise_what_turns(into):
    raise TurningError(*into)


def raise_silent():
    raise Silent


def give(thing):
    return thing


def give_raising(what, error):
    return Raises(what, error)


def die_at(item, wanted):
    if item == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def die_at_57(item):
    return die_at(item, 57)


def stay(seconds):
    """Ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)
    return seconds


def stay_or_go(seconds):
    time.sleep(seconds)
    return seconds


def handlers():
    """Return the signals for which this worker has Python handlers, and the wakeup descriptor."""
    found = [number for number in signal.valid_signals() if callable(signal.getsignal(number))]
    wakeup = signal.set_wakeup_fd(-1)
    return sorted({*found} - {signal.SIGINT}), wakeup
