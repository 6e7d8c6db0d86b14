"""Every family through ``batch_train(engine="compiled")``: each member equals a handwritten loop: ``nox -s slow``."""

from __future__ import annotations

import pytest

import l2path
from tests.contract import assert_solo, run
from tests.families import FAMILIES, Family

RTOL = 1e-8  # numbers of three epochs; LayerNorm and its kin are ordered otherwise in a program
# By what the error says; torch 2.13.
REFUSED = {
    "FractionalMaxPool2d": "draws random numbers inside of a compiled program",
    "Gumbel softmax": "draws random numbers inside of a compiled program",
    "noise added to inputs": "torch.randn_like draws random numbers in a step",
    "BatchNorm1d, momentum=None": "forward reads a number out of a tensor",
    "RNN": "RNN, GRU, or LSTM",
    "LSTM, proj_size": "RNN, GRU, or LSTM",
    "spectral_norm": "aten::div.out",
    "spectral_norm on Conv2d": "aten::div.out",
    "complex parameters": "scan is not lowered to while_loop",
    "autograd.Function": "does not have vmap support",
    "CTC": "Dynamic shape operator",
}
VMAPPED = [f for f in FAMILIES if f.engine == "vmap" and not f.slow and "Packed" not in f.name]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("fresh_compiler"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("family", VMAPPED, ids=lambda family: family.name)
def test_compiled_members_equal_a_handwritten_loop(family: Family) -> None:
    if family.name in REFUSED:
        with pytest.raises(l2path.ArgumentError, match=f"^engine: got 'compiled', but .*{REFUSED[family.name]}"):
            run(family, {"engine": "compiled"})
        return
    result, _ = run(family, {"engine": "compiled"})
    assert result.engine.kind == "compiled", result.engine.reason
    assert_solo(result, family, RTOL)


def test_the_list_names_families() -> None:
    assert set(REFUSED) <= {f.name for f in VMAPPED}
