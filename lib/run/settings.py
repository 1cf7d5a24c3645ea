"""Settings: dataclasses whose fields a notebook's parameters override by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Self


class FromParameters:
    """For dataclasses: build them from the parameters of a notebook."""

    @classmethod
    def from_parameters(cls, values: Mapping[str, object], prefix: str) -> Self:
        """Take the defaults, changed by `prefix + field` and by the dictionary `prefix + "settings"` among the values.

        >>> Settings.from_parameters({"cyclegan_steps": 10, "cyclegan_settings": {"pool": 0}}, "cyclegan_")
        ... # doctest: +SKIP
        Settings(steps=10, …, pool=0, …)
        """
        named = {field.name for field in fields(cls)}
        given = {name: values[prefix + name] for name in named if prefix + name in values}
        seldom = values.get(f"{prefix}settings", {})
        return cls(**given | {name: value for name, value in seldom.items() if name in named})


def check_names(seldom: Mapping[str, object], prefix: str, *kinds: type) -> None:
    """Raise ValueError where a name of the dictionary `prefix + "settings"` is a field of none of these dataclasses."""
    known = [field.name for kind in kinds for field in fields(kind)]
    for name in seldom:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{prefix}settings has no {name!r}{hint}; there are {', '.join(known)}")
