"""No random numbers inside compiled programs, where they would not be those of a lone member."""

from __future__ import annotations

from typing import Any

from torch import Tag, fx
from torch._ops import OpOverload


def without_random_numbers() -> dict[str, Any]:
    """Return options for ``torch.compile(..., options=...)`` that refuse a program that draws random numbers.

    Compiling then raises a RuntimeError that names the operation.
    """
    from torch._inductor.custom_graph_pass import CustomGraphPass  # importing inductor takes a second

    class NoRandomNumbers(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            for node in graph.nodes:
                if draws(node):
                    raise RuntimeError(f"{node.target} draws random numbers inside of a compiled program")

        def uuid(self) -> str:
            return "l2path-no-random-numbers"

    return {"post_grad_custom_pre_pass": NoRandomNumbers()}


def draws(node: fx.Node) -> bool:
    """Return whether an operation draws random numbers."""
    if not isinstance(node.target, OpOverload) or Tag.nondeterministic_seeded not in node.target.tags:
        return False
    for at, argument in enumerate(node.target._schema.arguments):
        if argument.name == "dropout_p":  # of attention
            given = node.args[at] if at < len(node.args) else node.kwargs.get("dropout_p", argument.default_value)
            return not (isinstance(given, float) and given == 0.0)
    return True
