"""Compares the library with a dict of numpy arrays; names and bytes are checked after every step."""

import os

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import shmarray
from tests.helpers import raw

LETTERS = st.sampled_from("abcd")
SHAPES = st.sampled_from([(), (0,), (3,), (2, 3), (70, 80)])
DTYPES = st.sampled_from(["f8", ">i2", "S3", [("x", "i1"), ("y", "f4", (2,))]])


class NamedArrays(RuleBasedStateMachine):
    """`model` maps each name to its expected array; `attached` pairs each array with its expected content."""

    def __init__(self):
        super().__init__()
        self.prefix = f"t{os.getpid()}-stateful-"
        self.model = {}
        self.attached = []

    def name(self, letter):
        return self.prefix + letter

    def keep(self, array, expected):
        self.attached.append((array, expected))

    @rule(letter=LETTERS, shape=SHAPES, dtype=DTYPES, order=st.sampled_from("CF"))
    def create(self, letter, shape, dtype, order):
        if letter in self.model:
            with pytest.raises(shmarray.ArrayExistsError):
                shmarray.create(self.name(letter), shape, dtype, order=order)
            return
        self.model[letter] = np.zeros(shape, dtype, order)
        self.keep(shmarray.create(self.name(letter), shape, dtype, order=order), self.model[letter])

    @rule(letter=LETTERS, source=st.sampled_from([[1, 2, 3], np.arange(12.0).reshape(3, 4).T, np.arange(9)[::-2]]))
    def create_from_data(self, letter, source):
        if letter in self.model:
            with pytest.raises(shmarray.ArrayExistsError):
                shmarray.create(self.name(letter), data=source)
            return
        self.model[letter] = np.array(source)
        self.keep(shmarray.create(self.name(letter), data=source), self.model[letter])

    @rule(letter=LETTERS, mode=st.sampled_from(["r+", "r"]))
    def attach(self, letter, mode):
        if letter not in self.model:
            with pytest.raises(shmarray.ArrayNotFoundError):
                shmarray.attach(self.name(letter), mode)
            return
        array = shmarray.attach(self.name(letter), mode)
        assert array.flags.writeable == (mode == "r+")
        self.keep(array, self.model[letter])

    @rule(letter=LETTERS, shape=SHAPES, dtype=DTYPES)
    def require(self, letter, shape, dtype):
        there = self.model.get(letter)
        wanted = np.zeros(shape, dtype)
        if there is None:
            self.model[letter] = wanted
        elif there.shape != wanted.shape or there.dtype != wanted.dtype or there.flags.fnc:
            with pytest.raises(shmarray.ArrayExistsError):
                shmarray.require(self.name(letter), shape, dtype)
            return
        self.keep(shmarray.require(self.name(letter), shape, dtype), self.model[letter])

    @rule(letter=LETTERS)
    def delete(self, letter):
        if letter in self.model:
            shmarray.delete(self.name(letter))
            del self.model[letter]
        else:
            with pytest.raises(shmarray.ArrayNotFoundError):
                shmarray.delete(self.name(letter))

    @rule(which=st.integers(0), value=st.integers(1, 99))
    def write(self, which, value):
        if not self.attached:
            return
        array, expected = self.attached[which % len(self.attached)]
        if not array.flags.writeable or not array.size:
            return
        if array.dtype.names:
            array["x"], expected["x"] = value, value
        else:
            array[...] = value
            expected[...] = value

    @rule(which=st.integers(0))
    def forget(self, which):
        if self.attached:
            del self.attached[which % len(self.attached)]

    @rule(which=st.integers(0))
    def lock(self, which):
        if not self.attached:
            return
        array, expected = self.attached[which % len(self.attached)]
        if any(expected is held for held in self.model.values()):
            with shmarray.lock(array, timeout=0):
                pass
        else:
            with pytest.raises(shmarray.ArrayNotFoundError), shmarray.lock(array, timeout=0):
                pass

    @invariant()
    def names_are_the_same(self):
        expected = sorted(self.name(letter) for letter in self.model)
        assert raw.names(self.prefix) == expected
        assert [info.name for info in shmarray.list() if info.name.startswith(self.prefix)] == expected

    @invariant()
    def bytes_are_the_same(self):
        for array, expected in self.attached:
            assert array.tobytes() == expected.tobytes()
        for letter, expected in self.model.items():
            loaded = np.load(raw.path(self.name(letter)))
            assert loaded.dtype == expected.dtype
            assert loaded.tobytes() == expected.tobytes()

    def teardown(self):
        for letter in self.model:
            shmarray.delete(self.name(letter))
        self.attached.clear()


TestNamedArrays = NamedArrays.TestCase
TestNamedArrays.settings = settings(max_examples=12, stateful_step_count=25, deadline=None)
