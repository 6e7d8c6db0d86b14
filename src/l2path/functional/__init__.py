"""``nn.Module`` to pure functions; the only room that imports ``torch.func``."""

from l2path.functional.checks import check_module
from l2path.functional.likeness import alike
from l2path.functional.module import (
    Functional,
    as_arguments,
    failing_layer,
    first_members,
    functionalize,
)
from l2path.functional.noise import Given, Numbers, drawn, noted
from l2path.functional.precision import coarsest_dtype
from l2path.functional.rng import forked_rng, seed_generators
from l2path.functional.substitutes import Substitutes
from l2path.functional.transforms import (
    at_grad_level,
    grad_with_autograd,
    grad_with_torch_func,
    member_gradients,
    unused_parameters,
    vmap,
    vmap_hints_silenced,
)

__all__ = [
    "Functional",
    "Given",
    "Numbers",
    "Substitutes",
    "alike",
    "as_arguments",
    "at_grad_level",
    "check_module",
    "coarsest_dtype",
    "drawn",
    "failing_layer",
    "first_members",
    "forked_rng",
    "functionalize",
    "grad_with_autograd",
    "grad_with_torch_func",
    "member_gradients",
    "noted",
    "seed_generators",
    "unused_parameters",
    "vmap",
    "vmap_hints_silenced",
]
