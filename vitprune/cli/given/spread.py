"""Groups of options as one parameter of a verb."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, get_type_hints

from vitprune.core.progress import reporter


def spread(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as a command: each parameter whose type is a dataclass is given as that one's fields, by name, and put
    together again before the verb is called. Where it ends, so does the progress that it told."""
    hints, groups, taken = get_type_hints(verb, include_extras=True), dict[str, type](), list[inspect.Parameter]()
    for name, parameter in inspect.signature(verb).parameters.items():
        if is_dataclass(kind := hints[name]):
            groups[name] = kind  # type: ignore[assignment]
            own = get_type_hints(kind, include_extras=True)
            taken += [_parameter(one, own[one.name]) for one in fields(kind)]
        else:
            taken.append(parameter.replace(annotation=hints[name], kind=parameter.KEYWORD_ONLY))

    @functools.wraps(verb)
    def command(**given: Any) -> None:
        made = {name: kind(**{one.name: given.pop(one.name) for one in fields(kind)}) for name, kind in groups.items()}
        try:
            verb(**made, **given)
        finally:
            reporter.rest()

    command.__signature__ = inspect.Signature(taken)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in taken}
    return command


def _parameter(one: Field[Any], hint: Any) -> inspect.Parameter:
    default = inspect.Parameter.empty if one.default is MISSING else one.default
    return inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
