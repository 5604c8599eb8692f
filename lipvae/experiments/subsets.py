"""Data sets cut to some of their classes, by name: ``mnist-01`` is MNIST's digits 0 and 1."""

from __future__ import annotations

import re

from lipvae.data.registry import REGISTRY

# Sets with labels.
LABELLED = (*REGISTRY, "digits")


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """The whole set of a name, and the classes that it is cut to; none where it isn't cut.

    Example:
        >>> parse("mnist-01"), parse("cifar10"), parse("near-black")
        (('mnist', (0, 1)), ('cifar10', ()), ('near-black', ()))
    """
    base, _, classes = name.rpartition("-")
    if base in LABELLED and re.fullmatch("[0-9]+", classes) and len(set(classes)) == len(classes):
        return base, tuple(int(digit) for digit in classes)
    return name, ()


def whole(name: str) -> str:
    """The set that a name is cut from."""
    return parse(name)[0]


def title(name: str) -> str:
    """In words.

    Example:
        >>> title("mnist-01"), title("mnist")
        ('mnist, classes 0 and 1', 'mnist')
    """
    base, classes = parse(name)
    if not classes:
        return base
    *most, last = map(str, classes)
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{base}, class{'es' if most else ''} {listed}"
