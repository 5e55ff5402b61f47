"""Numbers and foreign text as they are shown to people, and columns."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmarray.command import table, wording
from shmarray.command.table import Column
from tests.helpers import strategies


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (8_000_000, "7.6 MiB"),
        (2**20 - 1, "1.0 MiB"),
        (2**30 - 1, "1.0 GiB"),
        (3 * 2**40, "3.0 TiB"),
        (2**63, "8.0 EiB"),
    ],
)
def test_size(count, text):
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (1e6, "12 d")],
)
def test_duration(seconds, text):
    assert wording.duration(seconds) == text


def test_counts_have_plurals():
    assert [wording.count(n, "process") for n in (0, 1, 2)] == ["0 processes", "1 process", "2 processes"]
    assert wording.count(2, "array") == "2 arrays"


@given(st.text())
def test_foreign_text_is_printable_and_otherwise_untouched(text):
    safe = wording.safe(text)
    assert safe.isprintable()
    assert safe == text or not text.isprintable()


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("f8", "float64"),
        (">f8", ">f8"),
        ("M8[ns]", "datetime64[ns]"),
        ("U5", "<U5"),
        ([("a", "f4"), ("b", "i2", (3,))], "{a: float32, b: int16 (3,)}"),
        ([("\x1b[31m", "f4")], "{\\x1b[31m: float32}"),
        ([(f"field{i}", "f4") for i in range(99)], "{field0: float32, field1: fl...}"),
    ],
)
def test_dtype(dtype, text):
    assert wording.dtype(np.dtype(dtype)) == text


@given(strategies.dtypes)
def test_every_dtype_has_a_word_and_a_description_for_json(dtype):
    assert wording.dtype(dtype).isprintable()
    json.dumps(wording.descr(dtype))


@pytest.mark.parametrize(
    ("value", "json_value"),
    [
        (None, None),
        (np.True_, True),
        (np.uint64(2**64 - 1), 2**64 - 1),
        (np.float32(0.5), 0.5),
        (np.longdouble(2), 2.0),
        (np.float64("nan"), "nan"),
        (-np.inf, "-inf"),
        (np.complex64(1 + 2j), [1.0, 2.0]),
        (np.datetime64("2020-01-01", "D"), "2020-01-01"),
        (np.timedelta64(5, "s"), "5 seconds"),
    ],
)
def test_numbers_for_json(value, json_value):
    found = wording.number(value)
    assert found == json_value
    assert type(found) is type(json_value)


# --- columns -------------------------------------------------------------------------

COLUMNS = (Column("name"), Column("size", ">"), Column("age", ">", worth=2), Column("owner", worth=1))
ROWS = [["a", "1 KiB", "3 d", "root"], ["longer", "10 KiB", "14 min", "nobody"]]


def test_columns_align():
    assert table.lines(COLUMNS, ROWS, 80) == [
        "name      size     age  owner",
        "a        1 KiB     3 d  root",
        "longer  10 KiB  14 min  nobody",
    ]


def test_the_least_important_columns_are_dropped_first_and_names_are_never_cut():
    assert table.lines(COLUMNS, ROWS, 30)[0].split() == ["name", "size", "age", "owner"]
    assert table.lines(COLUMNS, ROWS, 29)[0].split() == ["name", "size", "age"]
    assert table.lines(COLUMNS, ROWS, 15)[0].split() == ["name", "size"]
    assert table.lines(COLUMNS, ROWS, 1)[2] == "longer  10 KiB"


def test_wide_and_combining_characters_align():
    lines = table.lines((Column("name"), Column("x")), [["日本", "|"], ["e\u0301abc", "|"], ["abcd", "|"]], 80)
    assert lines == ["name  x", "日本  |", "e\u0301abc  |", "abcd  |"]


def test_a_pipe_has_no_limit_on_width(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert table.terminal_width() > 1000
    monkeypatch.setenv("COLUMNS", "60")
    assert table.terminal_width() == 60
