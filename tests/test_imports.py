"""Every module imports, and the package's promise of names holds."""

import pkgutil
from importlib import import_module

import pytest

import palate

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(palate.__path__, "palate.")
    if module.name != "palate.__main__"  # runs the command line
)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports(name: str) -> None:
    assert import_module(name).__doc__


def test_public_names_are_there() -> None:
    for name in palate.__all__:
        assert getattr(palate, name) is not None
    assert palate.preferences.read is not None
