"""What cannot be taken apart, and is refused."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from l2path.errors import ArgumentError


def check_hooks(module: nn.Module) -> None:
    """Refuse what torch.func silently ignores (hooks on gradients) and what it cannot add up (sparse gradients)."""
    for name, m in module.named_modules():
        if m._backward_hooks or m._backward_pre_hooks:
            raise ArgumentError(
                "module",
                got=f"backward hooks on {name!r} ({type(m).__name__})",
                expected="a module without hooks on gradients: torch.func never calls them",
                remedy="remove them, and act on the gradients with make_train_step(grad_transform=...)",
            )
        if getattr(m, "sparse", False) is True and isinstance(m, (nn.Embedding, nn.EmbeddingBag)):
            raise ArgumentError(
                "module",
                got=f"sparse gradients of {name!r} ({type(m).__name__})",
                expected="dense gradients, to which an L2 penalty can be added",
                remedy="build the layer with sparse=False",
            )
    for name, p in module.named_parameters():
        if p._backward_hooks or p._post_accumulate_grad_hooks:
            raise ArgumentError(
                "module",
                got=f"a gradient hook on the parameter {name!r}",
                expected="parameters without hooks: torch.func never calls them",
                remedy="remove it, and act on the gradients with make_train_step(grad_transform=...)",
            )


def check_module(module: object, *, training: bool) -> None:
    """Refuse what cannot be taken apart; see :func:`functionalize` for the errors."""
    if not isinstance(module, nn.Module):
        raise ArgumentError(
            "module", got=f"a {type(module).__name__}", expected="an nn.Module", remedy="pass the module itself"
        )
    if isinstance(module, torch.jit.ScriptModule):
        raise ArgumentError(
            "module",
            got="a ScriptModule",
            expected="an ordinary nn.Module",
            remedy="pass the module that was scripted: torch.func cannot transform TorchScript",
        )
    check_hooks(module)
    lazy = [name for name, p in module.named_parameters() if is_lazy(p)]
    if lazy:
        raise ArgumentError(
            "module",
            got=f"uninitialised lazy parameters {lazy}",
            expected="parameters with a shape",
            remedy="call the module once on a batch before passing it",
        )
    if training and not module.training:
        raise ArgumentError(
            "module",
            got="a module in eval mode",
            expected="a root module in train mode (sub-modules in eval mode are respected)",
            remedy="call module.train() first, then .eval() on the sub-modules that must stay frozen",
        )
