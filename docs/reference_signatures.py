"""An extension of griffe: a field of a dataclass that says `field(kw_only=False)` may be given by position.

griffe's own extension, after which this one is loaded (mkdocs.yml), makes the signature of a dataclass of its fields,
and takes all of them for keywords where the class says `kw_only=True`.
"""

from __future__ import annotations

from typing import Any

from griffe import Class, Extension, Module, ParameterKind, Parameters


class PositionalFields(Extension):
    """Puts such fields before the keywords."""

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Go through all classes of a package that was loaded."""
        for member in pkg.members.values():
            if member.is_alias:
                continue
            if isinstance(member, Module):
                self.on_package(pkg=member)
            elif isinstance(member, Class) and "dataclass" in member.labels:
                _reorder(member)


def _reorder(dataclass: Class) -> None:
    parameters = dataclass.members["__init__"].parameters
    for base in (dataclass, *dataclass.mro()):
        for name, member in base.members.items():
            if name in parameters and member.is_attribute and "kw_only=False" in str(member.value):
                parameters[name].kind = ParameterKind.positional_or_keyword
    ordered = sorted(parameters, key=lambda parameter: parameter.kind is ParameterKind.keyword_only)
    dataclass.members["__init__"].parameters = Parameters(*ordered)
