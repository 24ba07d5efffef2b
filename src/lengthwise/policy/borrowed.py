"""Arrays without an owner, and tuples of them that are handed on as one pointer.

numba counts references to every array that a function is handed, with atomic operations, and hands
a tuple over member by member. A step of the simulator hands a score of arrays through a dozen
functions, which costs more than the step, and takes minutes to compile. Whoever called the first of
them holds all arrays until it returns, so nothing need be counted, and a pointer is enough.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, intrinsic, lower_getattr_generic, register_model


class Reference(types.Type):  # type: ignore[misc]
    """Type of a pointer to a named tuple, whose members are read by their names."""

    def __init__(self, target: types.NamedTuple) -> None:
        self.target = target
        super().__init__(f"Reference({target.name})")


@register_model(Reference)
class _Pointer(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Reference) -> None:
        members = manager.lookup(kind.target).get_value_type()
        super().__init__(manager, kind, members.as_pointer())


@infer_getattr
class _Members(AttributeTemplate):  # type: ignore[misc]
    key = Reference

    def generic_resolve(self, kind: Reference, name: str) -> Any:
        fields = kind.target.fields
        return kind.target.types[fields.index(name)] if name in fields else None


@lower_getattr_generic(Reference)  # type: ignore[untyped-decorator]
def _member(context: Any, builder: Any, kind: Reference, pointer: Any, name: str) -> Any:
    place = kind.target.fields.index(name)
    return builder.load(cgutils.gep_inbounds(builder, pointer, 0, place))


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(context: Any, value: Any) -> Any:
    """A named tuple of arrays and tuples as a pointer to a copy in which none is counted.

    Valid in the function that calls this and those that it calls, while the arrays' owners are:
    numba lets go of a local variable after its last use. A pointer is returned as it is.
    """

    def without_owner(target: Any, builder: Any, kind: Any, each: Any) -> Any:
        if isinstance(kind, types.Array):
            view = target.make_array(kind)(target, builder, each)
            view.meminfo = cgutils.get_null_value(view.meminfo.type)
            view.parent = cgutils.get_null_value(view.parent.type)
            return view._getvalue()
        if isinstance(kind, types.BaseTuple):
            for place, member in enumerate(kind):
                part = builder.extract_value(each, place)
                part = without_owner(target, builder, member, part)
                each = builder.insert_value(each, part, place)
        return each

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return cgutils.alloca_once_value(
            builder, without_owner(target, builder, value, arguments[0])
        )

    if isinstance(value, Reference):
        return value(value), lambda target, builder, signature, arguments: arguments[0]
    return Reference(value)(value), code
