"""The parser of the command line: wrong arguments become the same one-line errors as everything else."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from autoplan.errors import InputError

__all__ = ["Parser", "UsageError", "fraction", "one_of", "positive", "ratio", "seconds", "whole_number"]


class UsageError(InputError):
    """The arguments themselves are wrong; the message is argparse's sentence."""

    def __init__(self, message: str, program: str) -> None:
        super().__init__("arguments", message, f"what `{program} --help` lists", f"see `{program} --help`")

    def __str__(self) -> str:
        return f"{self.value}; {self.remedy}"


class Parser(argparse.ArgumentParser):
    """argparse's parser, strict about abbreviations, that raises ``UsageError`` in place of exiting."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, self.prog)


def whole_number(option: str, minimum: int = 1) -> Callable[[str], int]:
    """A converter for argparse: an integer of at least ``minimum``, or InputError naming ``option``."""

    def convert(text: str) -> int:
        value = int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else minimum - 1
        if value < minimum:
            raise InputError(
                option, text, f"an integer of at least {minimum}", f"give {option} {minimum} or more"
            )
        return value

    return convert


def fraction(option: str) -> Callable[[str], float]:
    """A converter: a number from 0 up to, and without, 1, as ``0.01`` or ``1%``."""

    def convert(text: str) -> float:
        value = _number(text.removesuffix("%"))
        value = value / 100 if text.endswith("%") else value
        if not 0 <= value < 1:
            raise InputError(
                option, text, "a fraction from 0 to 1, such as 0.01 or 1%", f"give {option} 0.01"
            )
        return value

    return convert


def seconds(option: str) -> Callable[[str], float]:
    """A converter: a positive, finite number of seconds."""
    return _in_range(option, lambda value: value > 0, "a positive number of seconds", "60")


def positive(option: str) -> Callable[[str], float]:
    """A converter: a positive, finite number."""
    return _in_range(option, lambda value: value > 0, "a positive number", "1e12")


def ratio(option: str) -> Callable[[str], float]:
    """A converter: a finite number of at least 1."""
    return _in_range(option, lambda value: value >= 1, "a number of at least 1", "1.25")


def _in_range(
    option: str, allows: Callable[[float], bool], expected: str, example: str
) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = _number(text)
        if not (allows(value) and value < float("inf")):
            raise InputError(option, text, expected, f"give {option} {example}")
        return value

    return convert


def one_of(option: str, *choices: str) -> Callable[[str], str]:
    """A converter: one of a few words."""

    def convert(text: str) -> str:
        if text not in choices:
            raise InputError(option, text, f"one of {', '.join(choices)}", f"give {option} {choices[0]}")
        return text

    return convert


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
