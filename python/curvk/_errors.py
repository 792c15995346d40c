"""The words of every error: function, argument, what was found, what is needed, how to get it."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NoReturn


def message(function: str, argument: str, found: str, needed: str, remedy: str = "") -> str:
    text = f"{function}: argument '{argument}': got {found}, needs {needed}"
    return f"{text}; {remedy}" if remedy else text


@lru_cache(maxsize=256)  # a step asks for each of its scalars
def _argument(op: str, name: str) -> Any:
    from ._signatures import ops  # here, so that `import curvk` reads no header

    function = next(iter(ops()[op].values()))
    return next(a for a in function.arguments if a.name == name)


def out_of_range(op: str, name: str, value: Any) -> NoReturn:
    """Raises for a scalar outside the range that the header gives it."""
    raise ValueError(message(op, name, f"{value}", f"a number in {_argument(op, name).range}"))


def not_a_number(op: str, name: str, value: Any, integer: bool) -> NoReturn:
    """Raises for a scalar that is not a real number or, where one is needed, not an integer, or that C cannot hold."""
    if hasattr(value, "__index__"):
        interval = _argument(op, name).range or ("[-2^63, 2^63)" if integer else "(-2^1024, 2^1024)")
        limit = " below 2^63" if integer and _is_positive(value) and "2^63" not in f"{interval}" else ""
        raise ValueError(message(op, name, f"{value}", f"a number in {interval}{limit}"))
    needed = "an integer" if integer else "a real number"
    raise TypeError(message(op, name, f"{value!r} of type {type(value).__name__}", needed))


def _is_positive(value: Any) -> bool:
    try:
        return bool(value.__index__() > 0)  # which need not compare with numbers itself
    except Exception:  # its own code, which may raise anything; the error about the value matters more
        return False


def check_scalar(op: str, name: str, value: Any) -> Any:
    """The value as a Python float or int, within the header's range; the twins' part of what the C side checks."""
    argument = _argument(op, name)
    integer = argument.ctype == "int64_t"
    try:
        number = value.__index__() if integer else float(value)
    except (AttributeError, OverflowError, TypeError, ValueError):
        not_a_number(op, name, value, integer)
    if isinstance(value, (str, bytes, bytearray)) or (integer and not -(2**63) <= number < 2**63):
        not_a_number(op, name, value, integer)
    if argument.range is not None and number not in argument.range:
        out_of_range(op, name, value)
    return number
