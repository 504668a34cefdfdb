"""
What a configuration has in common with another: its checks, and the names of its options.

Floor 0: imports only errors. Which options there are, and their defaults, is config.py's.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .errors import ConfigError, UnknownOption

__all__ = ["Aliases", "bad", "canonical", "check", "check_texts", "named_options"]

Aliases = dict[str, tuple[str, Callable[[Any], Any] | None]]

_Config = TypeVar("_Config")


def check(
    config: Any,
    *,
    positive: Sequence[str],
    at_least: Mapping[str, int],
    optional: Sequence[str] = (),
) -> None:
    """Raise ConfigError for a field that is no finite positive number, or no large integer."""
    for name in positive:
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise bad(name, value, "a number of seconds")
        if not 0 < value < math.inf:
            raise bad(name, value, "a finite number above 0")
    for name, least in at_least.items():
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise bad(name, value, f"an integer of at least {least}")


def check_texts(name: str, values: Any) -> None:
    """Raise ConfigError unless `values` is None, or a list of printable ASCII strings."""
    if values is None:
        return
    if isinstance(values, (str, bytes)) or not isinstance(values, (list, tuple, set, frozenset)):
        raise bad(name, values, "a list of strings")
    for value in values:
        if not isinstance(value, str) or not value.isascii() or not value.isprintable():
            raise bad(name, value, "printable ASCII text")


def bad(name: str, value: Any, wanted: str) -> ConfigError:
    """Return the error that says what a field must be."""
    return ConfigError(f"{name} must be {wanted}, not {value!r}.", field=name, value=value)


def named_options(cls: type[_Config]) -> type[_Config]:
    """Let a config's constructor understand other names, and refuse unknown ones by name."""
    make = cls.__init__
    names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]

    @functools.wraps(make)
    def __init__(self: _Config, **options: Any) -> None:
        options = canonical(options, cls.aliases())  # type: ignore[attr-defined]
        for name, value in options.items():
            if name not in names:
                raise UnknownOption(
                    f"{cls.__name__} has no option {name!r}.", field=name, value=value
                )
        make(self, **options)

    cls.__init__ = __init__  # type: ignore[method-assign, assignment]
    return cls


def canonical(changes: Mapping[str, Any], aliases: Aliases) -> dict[str, Any]:
    """Return options by the names of their fields; both names of one are a TypeError."""
    result: dict[str, Any] = {}
    given: dict[str, str] = {}
    for name, value in changes.items():
        target, convert = aliases.get(name, (name, None))
        if target in result:
            raise TypeError(f"{given[target]} and {name} were both given, which are one option.")
        given[target] = name
        result[target] = convert(value) if convert is not None else value
    return result
