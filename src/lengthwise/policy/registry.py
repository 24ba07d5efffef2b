"""Policies by name.

A policy is one scalar function of one request's state, `rank(request, now, parameters)`; the
request with the lower rank runs first. Registering it compiles it (lazily, with numba) into the
one function object that the vLLM scheduler and the simulator both call.

    from lengthwise.policy import register

    @register("youngest-first")
    def youngest_first(request, now, parameters):
        return -request.arrival_index

`request` has the fields of `lengthwise.request.REQUEST`, `now` is the scheduler's monotonic clock
in seconds (the same value for every request of a step), `parameters` has the policy's own
parameters as fields. Equal ranks run in queue order. A rank may be ±inf; NaN sorts last.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.errors import InputError, one_line, unknown_name

Preemption = Literal["never", "pays", "greedy"]
RankFunction = Callable[[Any, float, Any], float]


@dataclass(frozen=True)
class Policy:
    """A named rank with what the rest of the system needs to know about it.

    Attributes:
        name: what users write.
        rank: the compiled rank function.
        summary: one line for lists and documentation.
        parameters: the policy's own parameters with their defaults.
        preemption: whether running requests may be preempted for waiting ones when the user
            says nothing: "never", "pays" (only when the recompute is repaid) or "greedy".
        predictor: the predictor that the policy insists on ("oracle"), or None for the user's.
        predicts: whether the rank depends on a prediction at all.
        reads_prefix_cache: whether it reads `cached_tokens`, which costs a look-up a request.
        refines: whether it takes up predictions that are made while a request decodes.
        adapts: the parameter that may be "auto", see `policy.prices`; None for none.
    """

    name: str
    rank: Any
    summary: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    preemption: Preemption = "never"
    predictor: str | None = None
    predicts: bool = True
    reads_prefix_cache: bool = False
    refines: bool = True
    adapts: str | None = None

    def parameter_record(self, values: Mapping[str, float | str]) -> NDArray[np.void]:
        """The parameters as an array of one record, the form that compiled ranks read.

        One that is "auto" starts with its default.

        Raises:
            InputError: a value is given for a parameter that the policy does not have, or is
                "auto" where that has no meaning.
        """
        for name in values:
            if name not in self.parameters:
                if not self.parameters:
                    raise InputError(f"policy {self.name!r} has no parameters, but {name!r} is set")
                raise unknown_name(f"parameter of policy {self.name!r}", name, self.parameters)
        numbers: dict[str, float] = {}
        for name, value in values.items():
            if not isinstance(value, str):
                numbers[name] = value
            elif value != "auto" or name != self.adapts:
                raise InputError(
                    f"parameter {name} of policy {self.name!r} must be a number, not {value!r}"
                )
        merged = {**self.parameters, **numbers} or {"unused": 0.0}
        dtype = np.dtype([(name, np.float64) for name in merged])
        return np.array([tuple(merged.values())], dtype=dtype)


_policies: dict[str, Policy] = {}


def register(
    name: str,
    *,
    parameters: Mapping[str, float] | None = None,
    preemption: Preemption = "never",
    predictor: str | None = None,
    predicts: bool = True,
    reads_prefix_cache: bool = False,
    refines: bool = True,
    adapts: str | None = None,
) -> Callable[[RankFunction], RankFunction]:
    """Register a rank function as a policy; the first line of its docstring is the summary.

    The decorated function is returned as it was, so that it can be called and tested as plain
    Python too.

    Raises:
        InputError: the name is taken by another function, or contains a character that policy
            specs use, or the preemption mode is unknown.
    """
    if preemption not in get_args(Preemption):
        raise unknown_name("preemption mode", preemption, get_args(Preemption))
    if not name or set(name) & set(",;=: "):
        raise InputError(f"policy name {name!r} is empty or contains one of ',;=: '")

    def decorate(rank: RankFunction) -> RankFunction:
        known = _policies.get(name)
        if known is not None and known.rank.py_func.__code__ != rank.__code__:
            raise InputError(f"policy {name!r} is already registered: choose another name")
        _policies[name] = Policy(
            name=name,
            rank=compiled_here(rank),
            summary=(rank.__doc__ or "").strip().split("\n")[0],
            parameters=dict(parameters or {}),
            preemption=preemption,
            predictor=predictor,
            predicts=predicts,
            reads_prefix_cache=reads_prefix_cache,
            # One that insists on its predictor hears no other.
            refines=refines and predictor is None,
            adapts=adapts,
        )
        return rank

    return decorate


def get_policy(name: str) -> Policy:
    """The policy of that name.

    A name with a dot or a path, `package.module#policy` or `folder/file.py#policy`, imports that
    module first (which registers the policy) and then looks the part behind `#` up.

    Raises:
        InputError: no such policy (the message lists those there are), or the module cannot be
            imported.
    """
    module_name, separator, policy_name = name.rpartition("#")
    if separator:
        _import_module(module_name)
        name = policy_name
    if name not in _policies:
        raise unknown_name("policy", name, _policies)
    return _policies[name]


def policy_names() -> list[str]:
    """All registered policies, sorted."""
    return sorted(_policies)


def _import_module(name: str) -> None:
    """Import a module by dotted name, or by the path of its file."""
    try:
        if name.endswith(".py"):
            _import_file(Path(name).resolve())
        else:
            importlib.import_module(name)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"cannot import the policy module {one_line(name, repr)}: {one_line(error)}"
        ) from error


_imported: dict[Path, str] = {}  # SHA-256 of the source of each file, as it was imported last


def _import_file(path: Path) -> None:
    """Import a user's file, unless that was done and it has not changed since.

    What it registered before is replaced by what it registers now. A policy that stays the same
    object need not be compiled anew.
    """
    if not path.is_file():
        raise ImportError("there is no such file")
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    if _imported.get(path) == digest:
        return
    before = dict(_policies)
    for name, policy in before.items():
        if policy.rank.py_func.__code__.co_filename == str(path):
            del _policies[name]
    # A name that no other module has: a policy may well be in a file called queue.py.
    name = f"lengthwise_own_policy_{path.stem}_{digest[:16]}"
    spec = spec_from_file_location(name, path, loader=_Loader(name, str(path), source))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        _policies.clear()
        _policies.update(before)
        raise
    _imported[path] = digest


class _Loader(SourceFileLoader):
    """Imports a source that was read already, past kept bytecode, which may be of older content."""

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> CodeType:
        """The source, compiled."""
        code: CodeType = self.source_to_code(self._source, self.path)
        return code
