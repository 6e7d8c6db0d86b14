"""What all element-wise optimizers share: names, dtypes, complex numbers and scalar arithmetic.

An algorithm is then its own equation and nothing else: the scalars of one update, and a rule for one
parameter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from l2path.errors import ArgumentError
from l2path.optimizers.base import check_names
from l2path.optimizers.checks import Scalar, Schedule
from l2path.types import Grads, Params, Updates

Scalars: TypeAlias = Mapping[str, Tensor]
"""0-d tensors of one update, by name."""
Slots: TypeAlias = tuple[Tensor, ...]
"""The state of one parameter: a tensor per slot, shaped like the parameter's real view."""
Rule: TypeAlias = Callable[[Tensor, Tensor, Slots, Scalars], tuple[Tensor, Slots]]
"""``rule(grad, param, slots, scalars) -> (update, slots)`` for one parameter, in one dtype."""


def scalar_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of scalar arithmetic: float64, or float32 where the device lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which tensors of a real dtype are updated: at least float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return ``x`` in a dtype. A conversion to its own dtype would still cost a call under vmap."""
    return x if x.dtype == dtype else x.to(dtype)


def real_view(x: Tensor) -> Tensor:
    """Return complex numbers as pairs of reals, as torch.optim updates them; reals as they are."""
    # The gradient of a complex parameter can be a lazy conjugate, which has no real view.
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x


def safe_sqrt(x: Tensor) -> Tensor:
    """Return the square root with a zero derivative, not an infinite one, where ``x`` vanishes."""
    # The clamped copy is nobody else's: one allocation less, which is most of the cost of a large update.
    return x.clamp(min=torch.finfo(x.dtype).tiny).sqrt_()


def check_params(params: Params) -> torch.device:
    """Return the device of the parameters, after checking that an optimizer can update them."""
    for name, param in params.items():
        if not (param.is_floating_point() or param.is_complex()):
            raise ArgumentError(
                "params",
                got=f"{name!r} of dtype {param.dtype}",
                expected="floating or complex parameters",
                remedy="keep it out of the parameters: a buffer is not trained",
            )
    return next((param.device for param in params.values()), torch.device("cpu"))


def init_scalars(params: Params, **values: Scalar) -> dict[str, Tensor]:
    """Return hyperparameters as 0-d tensors of scalar dtype that the state owns."""
    device = check_params(params)
    dtype = scalar_dtype(device)
    return {
        name: value.to(device, dtype, copy=True)
        if isinstance(value, Tensor)
        else torch.tensor(value, dtype=dtype, device=device)
        for name, value in values.items()
    }


def init_count(params: Params) -> Tensor:
    """Return the number of updates done: 0, a 0-d int64 tensor."""
    return torch.zeros((), dtype=torch.int64, device=check_params(params))


def init_slot(params: Params, value: float = 0.0) -> dict[str, Tensor]:
    """Return one tensor per parameter, shaped like its real view and filled with ``value``."""
    return {name: torch.full_like(real_view(param.detach()), value) for name, param in params.items()}


def scheduled(lr: Tensor, schedule: Schedule | None, count: Tensor) -> Tensor:
    """Return lr times the factor of the schedule at ``count`` updates done."""
    if schedule is None:
        return lr
    factor = schedule(count)
    if isinstance(factor, Tensor) and factor.ndim != 0:
        raise ArgumentError(
            "schedule",
            got=f"a factor of shape {tuple(factor.shape)}",
            expected="a 0-d factor of lr",
            remedy="compute it from count by operations that keep the shape",
        )
    return lr * factor


def elementwise(
    rule: Rule,
    grads: Grads,
    params: Params,
    slots: tuple[Mapping[str, Tensor], ...],
    scalars: Scalars,
    own: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> tuple[Updates, tuple[dict[str, Tensor], ...]]:
    """Apply a rule to every parameter.

    Parameters
    ----------
    rule : callable
        ``rule(grad, param, slots, scalars) -> (update, slots)``. Tensors and scalars arrive in one
        dtype, float32 or float64, and complex parameters as pairs of reals.
    grads, params : dict of str to Tensor
        Gradients and parameters under the same names, real or complex, of any floating dtype.
    slots : tuple of dict of str to Tensor
        The state of the algorithm, one dictionary per slot.
    scalars : mapping of str to Tensor
        0-d tensors in scalar dtype, shared by all parameters: computed once per update by the
        caller, and cast here once per dtype.
    own : mapping of str to mapping of str to Tensor, optional
        Further scalars that differ between parameters, as ``{scalar: {parameter: tensor}}``, each
        broadcastable to its parameter.

    Returns
    -------
    updates : dict of str to Tensor
        In the dtypes and shapes of the parameters.
    slots : tuple of dict of str to Tensor
        The new state, in the dtypes of the old one.

    Raises
    ------
    ArgumentError
        If gradients and parameters differ in names.

    Examples
    --------
    >>> import torch
    >>> def rule(grad, param, slots, s):
    ...     return -s["lr"] * grad, ()
    >>> w = {"w": torch.ones(2, dtype=torch.bfloat16)}
    >>> elementwise(rule, w, w, (), {"lr": torch.tensor(0.5)})
    ({'w': tensor([-0.5000, -0.5000], dtype=torch.bfloat16)}, ())
    """
    check_names(grads, params)
    updates: Updates = {}
    new_slots: tuple[dict[str, Tensor], ...] = tuple({} for _ in slots)
    cache: dict[torch.dtype, Scalars] = {}
    for name, original in params.items():
        param, grad = real_view(original), real_view(grads[name])
        dtype = compute_dtype(param.dtype)
        if dtype not in cache:
            cache[dtype] = {key: cast(value, dtype) for key, value in scalars.items()}
        local = cache[dtype]
        if own:
            is_complex = original.is_complex()
            local = {**local, **{key: _own(by[name], dtype, is_complex) for key, by in own.items()}}
        update, after = rule(
            cast(grad, dtype), cast(param, dtype), tuple(cast(slot[name], dtype) for slot in slots), local
        )
        update = cast(update, param.dtype)
        updates[name] = torch.view_as_complex(update) if original.is_complex() else update
        for new, old, value in zip(new_slots, slots, after, strict=True):
            new[name] = cast(value, old[name].dtype)
    return updates, new_slots


def _own(value: Tensor, dtype: torch.dtype, is_complex: bool) -> Tensor:
    # An element-wise scalar of a complex parameter holds for the real and the imaginary part.
    return cast(value.unsqueeze(-1) if is_complex and value.ndim else value, dtype)
