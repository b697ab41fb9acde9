"""Configurations are files from elsewhere too: bounded before jsonargparse unfolds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import yaml  # a requirement of jsonargparse
from jsonargparse import get_loader, set_loader

from bestie_pl.errors import UserError

LARGEST = 100_000
"""Values of a configuration with all aliases (``*name``) written out. Ours have some fifty; class names are values."""

NAMES = ("class_names", "source_classes", "ignored_columns")
"""Settings that are lists of names."""


def guard_configurations() -> None:
    """Let jsonargparse read YAML with ``load_configuration``, in this process."""
    load = get_loader("yaml")
    if not isinstance(load, partial):  # else it is guarded already
        set_loader("yaml", partial(load_configuration, load), exceptions=(yaml.YAMLError,))


def load_configuration(load: Callable[[str], Any], text: str) -> Any:
    """The content of a configuration, as ``load`` of jsonargparse reads it; nothing that a tag names is made.

    Raises:
        UserError: Nested too deeply; aliases that unfold into more than ``LARGEST`` values, of which jsonargparse would
            make copies; or a class name that YAML reads as a truth value or number.
    """
    try:
        content = load(text)
        count = _unfolded(content, {})
    except RecursionError as error:
        raise UserError("the configuration is nested too deeply, or holds itself; write it out") from error
    except ValueError as error:  # YAML's own errors are no ValueErrors
        raise UserError(f"a value of the configuration cannot be read ({error}); correct it") from error
    if count > LARGEST:
        raise UserError(
            f"the aliases (*name) of the configuration unfold into {count} values; expected at most {LARGEST}: write "
            "out what is meant"
        )
    for setting, name in _names(content):
        if not isinstance(name, str):
            raise UserError(
                f"{setting}: YAML reads one of the names as {name!r}; quote it, as in 'no' or '12': yes, no, on, off, "
                "null and numbers are no texts without quotation marks"
            )
    return content


def _unfolded(content: Any, known: dict[int, int]) -> int:
    """Number of values with each alias counted as what it stands for; every value is looked at once."""
    if not isinstance(content, (dict, list)):
        return 1
    if id(content) not in known:
        values = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_unfolded(value, known) for value in values)
    return known[id(content)]


def _names(content: Any) -> Iterator[tuple[str, Any]]:
    """Settings that are lists of names, and their elements."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            setting = str(key).rpartition(".")[2]
            if setting in NAMES and isinstance(value, list):
                yield from ((setting, name) for name in value)
            yield from _names(value)
