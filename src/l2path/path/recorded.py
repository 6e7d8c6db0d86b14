"""What is left of a module in a file: its tensors, and how its ``state_dict`` is made of them; not its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from torch import Tensor, nn

from l2path.errors import ArgumentError
from l2path.functional import Functional
from l2path.trees import map_tensors
from l2path.types import Buffers, Params


@dataclass(frozen=True)
class Recipe:
    """How the ``state_dict`` of a module comes about.

    Attributes
    ----------
    entries : dict of str to str or None
        Its keys in their order, each with the parameter or buffer that it is; None where hooks of the module compute it
        (an extra state, for example).
    computed : dict of str to dict
        What they computed, by key and by number of the member.
    lost : dict of str to str
        Keys whose value no file can hold, with the reason.
    """

    entries: dict[str, str | None]
    computed: dict[str, dict[int, Any]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def recipe_of(module: nn.Module) -> Recipe:
    """Return how the ``state_dict`` of a module comes about, without what it computes."""
    own = {id(t): name for name, t in (*module.named_parameters(), *module.named_buffers())}
    plain = module.state_dict()
    try:
        kept: Mapping[str, Any] = module.state_dict(keep_vars=True)
    except TypeError:  # a method of the module's own that does not know the word
        kept = {}

    def source(key: str, value: Any) -> str | None:
        tensor = kept.get(key)
        if id(tensor) not in own or not isinstance(tensor, Tensor) or not isinstance(value, Tensor):
            return None
        untouched = (value.data_ptr(), value.shape, value.dtype) == (tensor.data_ptr(), tensor.shape, tensor.dtype)
        return own[id(tensor)] if untouched else None

    return Recipe({key: source(key, value) for key, value in plain.items()})


@dataclass(frozen=True)
class Recorded(Functional):
    """A functional without its function: of a result that was loaded without its module."""

    recipe: Recipe = field(default_factory=lambda: Recipe({}))

    def state_dict(self, member: int, params: Params, buffers: Buffers) -> dict[str, Any]:
        """Return the ``state_dict`` of a member; names of one tied parameter share their memory, as in the module's."""
        if self.recipe.lost:
            self.missing(f"the entries {self.recipe.lost} of its state_dict, which no file holds")
        own = {name: value.detach().clone() for name, value in {**self.frozen, **params, **buffers}.items()}
        computed = {key: values[member] for key, values in self.recipe.computed.items()}
        return {
            key: map_tensors(lambda x: x.clone(), computed[key]) if name is None else own[name].detach()
            for key, name in self.recipe.entries.items()
        }

    def missing(self, what: str) -> NoReturn:
        """Say that the module is needed."""
        raise ArgumentError(
            "module",
            got=f"a result that was loaded without its module, which is needed for {what}",
            expected="the nn.Module or the function that the result was trained with: a file holds no code",
            remedy="l2path.load_result(path, module=...)",
        )

    def apply(self, params: Params, buffers: Buffers, *args: Any, **kwargs: Any) -> NoReturn:
        """Say that outputs need the module."""
        self.missing("predictions")

    def materialize(self, params: Params, buffers: Buffers) -> NoReturn:
        """Say that a module needs the module."""
        self.missing("module()")

    def evaluation(self) -> Functional:
        """Return the same: there is nothing to switch."""
        return self
