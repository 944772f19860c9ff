from __future__ import annotations

import pytest

import xpcnn
from xpcnn import errors

BASES = {
    "ArgumentError": ValueError,
    "ShapeError": ValueError,
    "DeviceError": RuntimeError,
    "StateDictError": ValueError,
    "DataError": ValueError,
    "FileFormatError": ValueError,
    "MissingExtraError": ImportError,
}


@pytest.mark.parametrize(("name", "base"), BASES.items())
def test_errors_can_be_caught_as_ours_and_as_built_in(name, base):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.XpcnnError)
    assert issubclass(kind, base)
    assert getattr(xpcnn, name) is kind


def test_all_errors_are_in_the_list():
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined == set(errors.__all__) == {*BASES, "XpcnnError"}


def test_a_missing_package_is_named_with_the_extra_that_brings_it():
    error = errors.MissingExtraError("matplotlib", "viz", "plotting curves")
    assert str(error) == (
        'plotting curves needs matplotlib, which is not installed. Install it with: pip install "xpcnn[viz]"'
    )
