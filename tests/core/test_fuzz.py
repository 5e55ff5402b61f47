"""Hostile or damaged content raises ArrayFormatError, with no read out of bounds, no evaluation and no delay."""

import os
import socket
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shmarray
from shmarray.core import layout
from tests.helpers import raw
from tests.helpers.processes import run_script

GOOD = raw.saved(np.arange(10.0))
LONG = raw.saved(np.zeros(3, [(f"field-{number}", "f8") for number in range(20)]))


def assert_no_array(name, seconds=1.0):
    start = time.perf_counter()
    with pytest.raises(shmarray.ArrayFormatError) as caught:
        shmarray.attach(name)
    assert time.perf_counter() - start < seconds
    assert name in str(caught.value)
    assert caught.value.name == name
    assert name not in [info.name for info in shmarray.list()]


DEEP = {
    f"{text[:8]}-{count}": text * count
    for text in ("(", "[", "{", "{1:", "((),", "1[", "()(", "'a'[0]", "True(", "-", "~", "not ", "f(", "lambda:", "*")
    for count in (99, 3000)
    if len(text) * count < 9_900
}
HOSTILE = {
    "empty": b"",
    "one-byte": b"\x93",
    "magic-alone": raw.MAGIC,
    "magic-and-version": raw.MAGIC + b"\1\0",
    "header-cut-off": GOOD[:60],
    "data-cut-off": GOOD[:-1],
    "no-data": GOOD[:128],
    "long-header-cut-off": LONG[:200],
    "zeros": b"\0" * 500,
    "wrong-magic": b"\x93NUMPX" + GOOD[6:],
    "zip": b"PK\3\4" + b"\0" * 200,
    "pickle": b"\x80\4\x95" + b"\0" * 200,
    "elf": b"\x7fELF" + b"\0" * 200,
    "version-0": GOOD[:6] + b"\0\0" + GOOD[8:],
    "version-1.1": GOOD[:6] + b"\1\1" + GOOD[8:],
    "version-4": GOOD[:6] + b"\4\0" + GOOD[8:],
    "version-255": GOOD[:6] + b"\xff\xff" + GOOD[8:],
    "huge-header-length": raw.MAGIC + b"\2\0\xff\xff\xff\xff" + b" " * 200,
    "header-of-64-kB": raw.framed(b"{" + b" " * 65_000),
    "header-longer-than-the-file": raw.framed("{}", length=9000),
    "header-of-length-0": raw.framed("", length=0) + b"\0" * 99,
    "shape-lies": raw.header(shape="(1000000,)") + b"\0" * 16,
    "shape-negative": raw.header(shape="(-2,)") + b"\0" * 16,
    "shape-negative-twice": raw.header(shape="(-1, -2)") + b"\0" * 16,
    "shape-overflows": raw.header(shape="(4294967296, 4294967296)") + b"\0" * 16,
    "shape-overflows-to-small": raw.header(shape="(4611686018427387904, 4)") + b"\0" * 16,
    "shape-overflow-hidden-by-0": raw.header(shape="(0, 99999999999999999999)") + b"\0" * 16,
    "shape-giant": raw.header(shape=f"({'9' * 4000},)") + b"\0" * 16,
    "shape-giant-beyond-the-limit-of-digits": raw.header(shape=f"({'9' * 9000},)") + b"\0" * 16,
    "shape-float": raw.header(shape="(2.0,)") + b"\0" * 16,
    "shape-nan": raw.header(shape="(nan,)") + b"\0" * 16,
    "shape-exponent": raw.header(shape="(1e3,)") + b"\0" * 16,
    "shape-bool": raw.header(shape="(True, 2)") + b"\0" * 16,
    "shape-list": raw.header(shape="[2]") + b"\0" * 16,
    "shape-int": raw.header(shape="2") + b"\0" * 16,
    "shape-str": raw.header(shape="'2'") + b"\0" * 16,
    "shape-none": raw.header(shape="None") + b"\0" * 16,
    "shape-of-65": raw.header(shape=f"({'1,' * 65})") + b"\0" * 16,
    "fortran-1": raw.header(fortran="1") + b"\0" * 16,
    "fortran-none": raw.header(fortran="None") + b"\0" * 16,
    "object": raw.header(descr="'|O'") + b"\0" * 16,
    "object-8": raw.header(descr="'|O8'") + b"\0" * 16,
    "object-in-a-structure": raw.header(descr="[('a', '|O')]") + b"\0" * 16,
    "object-in-a-sub-array": raw.header(descr="[('a', '|O', (1,))]") + b"\0" * 16,
    "descr-comma-string": raw.header(descr="'i4,O'") + b"\0" * 64,
    "descr-shape-string": raw.header(descr="'(2,)i4'") + b"\0" * 64,
    "descr-dict": raw.header(descr="{'names': ['a'], 'formats': ['O']}") + b"\0" * 64,
    "descr-none": raw.header(descr="None") + b"\0" * 16,
    "descr-int": raw.header(descr="8") + b"\0" * 16,
    "descr-unknown": raw.header(descr="'<f3'") + b"\0" * 16,
    "descr-sub-array": raw.header(descr="('<f8', (2,))") + b"\0" * 64,
    "descr-negative-sub-array": raw.header(descr="[('a', '<f8', (-2,))]") + b"\0" * 64,
    "descr-huge-sub-array": raw.header(descr="[('a', '<f8', (99999999999,))]") + b"\0" * 64,
    "descr-huge-void": raw.header(descr="'|V99999999999999999'") + b"\0" * 64,
    "descr-huge-text": raw.header(descr="'<U1073741824'") + b"\0" * 64,
    "descr-same-name-twice": raw.header(descr="[('a', '<f8'), ('a', '<f8')]") + b"\0" * 64,
    "descr-bad-field": raw.header(descr="[('a',)]") + b"\0" * 64,
    "descr-bad-name": raw.header(descr="[(1, '<f8')]") + b"\0" * 64,
    "descr-bad-title": raw.header(descr="[((1, 'a'), '<f8')]") + b"\0" * 64,
    "key-missing": raw.framed("{'descr': '<f8', 'shape': (2,)}") + b"\0" * 16,
    "key-extra": raw.framed("{'descr': '<f8', 'fortran_order': False, 'shape': (2,), 'x': 1}") + b"\0" * 16,
    "no-dict": raw.framed("['descr', 'fortran_order', 'shape']   ") + b"\0" * 16,
    "unhashable-key": raw.framed("{[]: 1, 'descr': '<f8'}            ") + b"\0" * 16,
    "nothing": raw.framed(" " * 54) + b"\0" * 16,
    "not-utf-8": raw.framed(b"{'descr': '\xff\xfe', 'fortran_order': False, 'shape': ()}", 3) + b"\0" * 16,
    "nul": raw.header(descr="'<f8\0'") + b"\0" * 16,
    "code": raw.header(descr="__import__('os').system('touch /tmp/shmarray-was-here')") + b"\0" * 16,
    "code-as-dict": raw.framed("dict(descr='<f8', fortran_order=False, shape=(2,))") + b"\0" * 16,
    "comprehension": raw.header(shape="tuple(i for i in range(2))") + b"\0" * 16,
    "power": raw.header(shape="(9**9**9,)") + b"\0" * 16,
    "sum": raw.header(shape="(1+1,)") + b"\0" * 16,
    "complex": raw.header(shape="(1+1j,)") + b"\0" * 16,
    "repetition": raw.header(shape="(1,)*2") + b"\0" * 16,
    "comment": raw.header(shape="(2,) # x") + b"\0" * 16,
    "bad-escape": raw.header(descr=r"'\N{BULLET}\q'") + b"\0" * 16,
    "f-string": raw.header(descr="f'{1}'") + b"\0" * 16,
    "bytes": raw.header(descr="b'<f8'") + b"\0" * 16,
    "open-string": raw.header(descr="'<f8") + b"\0" * 16,
    "open-bracket": raw.framed("{'descr': '<f8', 'fortran_order': False, 'shape': (2,") + b"\0" * 16,
    "tab": raw.header(shape="(\t2,)") + b"\0" * 16,
    **{f"deep-{key}": raw.header(shape=text) + b"\0" * 16 for key, text in DEEP.items()},
    **{f"deep-alone-{key}": raw.framed(text) + b"\0" * 16 for key, text in DEEP.items()},
    "deep-descr": raw.header(descr="[('a'," * 90 + "'<f8'" + ")]" * 90 + ")") + b"\0" * 16,
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_content_is_refused(name, content):
    raw.put(name, content)
    assert_no_array(name)
    assert raw.get(name) == content
    assert not os.path.exists("/tmp/shmarray-was-here")


def test_hostile_headers_print_no_warning(shm_name):
    """Python's parser warns about odd literals; a program that lists shared memory must not print such warnings."""
    odd = [r"'\d'", "1(2)", "'a'(1)", "()[0]", "1 if 1else 2", "0xfor 1", "(1)(2)", "1 is 1", "{'a':1}[0]", "[1][0, 1]"]
    names = [shm_name() for _ in odd]
    for name, text in zip(names, odd, strict=True):
        raw.put(name, raw.header(shape=text) + b"\0" * 16)
    code = """
import sys, warnings, shmarray
warnings.simplefilter("always")
for name in sys.argv[1:]:
    try:
        shmarray.attach(name)
    except shmarray.ArrayFormatError:
        pass
assert not set(sys.argv[1:]) & {info.name for info in shmarray.list()}
"""
    run_script(code, *names)


@pytest.mark.parametrize("mode", ["r+", "r", "c"])
@pytest.mark.parametrize("kind", ["directory", "fifo", "socket", "link", "link-to-an-array", "link-to-itself"])
def test_another_kind_of_file_is_refused_at_once(shm_name, kind, mode):
    name, other = shm_name(), shm_name()
    path = raw.path(name)
    array = shmarray.create(other, 3)
    with socket.socket(socket.AF_UNIX) as listener:
        {
            "directory": lambda: os.mkdir(path),
            "fifo": lambda: os.mkfifo(path),
            "socket": lambda: listener.bind(path),
            "link": lambda: os.symlink("/etc/passwd", path),
            "link-to-an-array": lambda: os.symlink(raw.path(other), path),
            "link-to-itself": lambda: os.symlink(path, path),
        }[kind]()
        start = time.perf_counter()
        with pytest.raises(shmarray.ArrayFormatError, match=name):
            shmarray.attach(name, mode)
        with pytest.raises(shmarray.ArrayFormatError, match=name):
            shmarray.require(name, 3)
        assert time.perf_counter() - start < 1
    assert name not in [info.name for info in shmarray.list()]
    del array


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/proc/self/status", "/", "/etc/passwd"])
@pytest.mark.parametrize("mode", ["r+", "r"])
def test_devices_and_other_files_are_refused(path, mode):
    with pytest.raises(OSError, match=path):
        shmarray.attach(f"file://{path}", mode)


def test_a_link_to_a_file_is_followed(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(3))
    (tmp_path / "link.npy").symlink_to(tmp_path / "a.npy")
    assert shmarray.attach(f"file://{tmp_path}/link.npy").tolist() == [0, 1, 2]


def attached_or_refused(name, content):
    """Check the only two permitted outcomes; an attached array must be inside its file."""
    raw.put(name, content)
    try:
        array = shmarray.attach(name, "r")
    except shmarray.ArrayFormatError:
        return
    finally:
        os.unlink(raw.path(name))
    assert array.nbytes <= len(content)
    assert not array.dtype.hasobject
    assert len(array.tobytes()) == array.nbytes


MUTATIONS = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=6)


@settings(max_examples=300)
@given(start=st.sampled_from([GOOD, LONG]), mutations=MUTATIONS, cut=st.integers(0, 2000))
def test_any_damage_is_refused_or_harmless(shm_name, start, mutations, cut):
    content = bytearray(start)
    for place, value in mutations:
        content[place % len(content)] = value
    attached_or_refused(shm_name(), bytes(content[: cut or None]))


@given(content=st.binary(max_size=300), version=st.integers(1, 3), framed=st.booleans())
@example(content=b"", version=1, framed=True)
def test_any_bytes_are_refused_or_harmless(shm_name, content, version, framed):
    attached_or_refused(shm_name(), raw.framed(content, version) if framed else content)


TOKENS = st.sampled_from(
    [
        *"()[]{},:' \n0123456789\"-+.*#\\",
        "'descr'",
        "'fortran_order'",
        "'shape'",
        "True",
        "False",
        "None",
        "'<f8'",
        "'|O'",
        "'|V0'",
        "('a', '<f8')",
        "('', '|V4')",
        "(2,)",
        "99999999999999999999",
        "lambda",
        "\\x93",
        "é",
    ]
)
TEXTS = st.lists(TOKENS, max_size=40).map("".join)


@settings(max_examples=300)
@given(descr=TEXTS, shape=TEXTS, fortran=st.sampled_from(["False", "True", "0", ""]), version=st.integers(1, 3))
def test_any_text_for_a_field_is_refused_or_harmless(shm_name, descr, shape, fortran, version):
    for text in (
        f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': (2,), }}",
        f"{{'descr': '<f8', 'fortran_order': {fortran}, 'shape': {shape}, }}",
    ):
        attached_or_refused(shm_name(), raw.framed(text, version) + b"\1" * 64)


@settings(max_examples=300)
@given(text=st.one_of(TEXTS, st.text(max_size=100), st.binary(max_size=100)), version=st.integers(0, 4))
def test_the_parser_gives_a_layout_or_its_one_error(text, version):
    body = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    header = raw.framed(body, version)
    try:
        found = layout.parse(header)
    except layout.BadHeaderError:
        return
    assert found.offset == len(header)
    assert found.size >= found.offset


@given(
    unit=st.sampled_from(["(", "[", "{", "{1:", "1[", "()(", "'a' ", "[1 ", "(1 ", "{(", "()", "1", "''"]),
    count=st.integers(1, 9000),
    tail=TEXTS,
)
def test_repetition_costs_bounded_time(unit, count, tail):
    text = (unit * count)[:9_000] + tail
    header = raw.framed(text[:9_900].encode("utf-8"))
    start = time.process_time()
    with suppress(layout.BadHeaderError):
        layout.parse(header)
    assert time.process_time() - start < 0.5
