"""A task's options: whether it has them, and whether they are of the kinds that it says."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from ist_fed.errors import TaskError, nearest


def check_names(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check that a task has all options that a scenario gives it.

    Raises:
        TaskError: it has not.
    """
    parameters = _parameters(make)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters]
    for option in options:
        if option not in known:
            raise TaskError(f"task '{name}' has no option '{option}'{nearest(option, known) or '; it has none'}")


def check_kinds(name: str, make: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Check that options are of the kinds that a task is annotated with, of which nobody else sees to it.

    Raises:
        TaskError: one is not.
    """
    for parameter in _parameters(make):
        if parameter.name not in options:
            continue
        value, kind = options[parameter.name], parameter.annotation
        if not _fits(value, kind):
            wanted = inspect.formatannotation(kind).replace("typing.", "")
            raise TaskError(
                f"option '{parameter.name}' of task '{name}' must be {wanted}, but is {value!r}; change it in [options]"
            )


def _parameters(make: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    try:
        return list(inspect.signature(make, eval_str=True).parameters.values())
    except ValueError:  # something built in, which has no signature to check
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
    except Exception:  # an annotation that is written as text names what is imported for type checkers only
        return list(inspect.signature(make).parameters.values())


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a kind; of what is not known here, such as lists and classes, it is."""
    if kind in (bool, str, NoneType):
        return isinstance(value, kind)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, each) for each in get_args(kind))
    if get_origin(kind) is Literal:
        return any(value == each and type(value) is type(each) for each in get_args(kind))
    return True
