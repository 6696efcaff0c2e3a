"""Nameko's classes, recognised by name: importing them would bring eventlet into the process."""

from __future__ import annotations

__all__ = ["class_names", "dotted_name", "is_a"]


def dotted_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def class_names(value: object) -> list[str]:
    """Names of the classes of `value`, nearest first."""
    return [dotted_name(cls) for cls in type(value).__mro__]


def is_a(value: object, name: str) -> bool:
    """`isinstance()`, by the class's dotted name."""
    return name in class_names(value)
