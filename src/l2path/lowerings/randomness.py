"""No random numbers inside compiled programs, where they would not be those of a lone member."""

from __future__ import annotations

from typing import Any


def without_random_numbers() -> dict[str, Any]:
    """Return options for ``torch.compile(..., options=...)`` that refuse a program that draws random numbers.

    Compiling then raises a RuntimeError that names the operation.
    """
    from torch import Tag, fx
    from torch._inductor.custom_graph_pass import CustomGraphPass  # importing inductor takes a second

    class NoRandomNumbers(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            for node in graph.nodes:
                if Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                    raise RuntimeError(f"{node.target} draws random numbers inside of a compiled program")

        def uuid(self) -> str:
            return "l2path-no-random-numbers"

    # torch's own operations, which say that they draw, in the place of inductor's.
    return {"fallback_random": True, "post_grad_custom_pre_pass": NoRandomNumbers()}
