"""The examples in public docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import lipvae


def _modules() -> list[str]:
    found = [lipvae.__name__]
    for module in pkgutil.walk_packages(lipvae.__path__, "lipvae."):
        if not module.name.startswith(("lipvae.kernels", "lipvae._C")):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", _modules())
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_every_public_name_is_documented() -> None:
    missing = [
        f"{module.__name__}.{name}"
        for module in map(importlib.import_module, _modules())
        for name in getattr(module, "__all__", ())
        if callable(getattr(module, name)) and not inspect.getdoc(getattr(module, name))
    ]
    assert missing == []


def test_public_functions_have_an_example() -> None:
    for name in lipvae.functional.__all__:
        member = getattr(lipvae.functional, name)
        if inspect.isfunction(member):
            assert ">>>" in (inspect.getdoc(member) or ""), name
