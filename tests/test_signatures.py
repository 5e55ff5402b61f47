"""Signatures of the public functions, as help() shows them, fit on two lines, and their types can be evaluated."""

import inspect
import typing

import pytest

import shmarray

FUNCTIONS = [name for name in shmarray.__all__ if inspect.isfunction(getattr(shmarray, name))]


def test_there_are_functions():
    assert {"attach", "create", "scoped"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_signature_can_be_read(name):
    signature = str(inspect.signature(getattr(shmarray, name)))
    assert len(signature) < 220
    assert "permissions" not in signature or "= 0o600" in signature


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_tool_finds_the_types(name):
    hints = typing.get_type_hints(getattr(shmarray, name))
    assert {"return", *inspect.signature(getattr(shmarray, name)).parameters} == set(hints)


def test_permissions_are_shown_in_octal(name):
    shmarray.create(name, 3, permissions=0o640)
    (info,) = [info for info in shmarray.list() if info.name == name]
    assert "permissions=0o640" in repr(info)
    assert info.permissions == 0o640
