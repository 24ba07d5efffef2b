"""Arrays without an owner.

numba counts references to every array that a function is handed, with atomic operations. A step of
the simulator hands a score of arrays through a dozen functions, which costs more than the step.
Whoever called the simulator holds all of them until it returns, so nothing need be counted.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils
from numba.extending import intrinsic


@intrinsic  # type: ignore[untyped-decorator]
def borrowed(context: Any, array: Any) -> Any:
    """The same array, whose references are not counted: valid while its owner is."""

    def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = target.make_array(array)(target, builder, arguments[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), code
