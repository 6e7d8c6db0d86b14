"""``check``: each verdict on a module that deserves it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

X, Y = torch.randn(5, 3), torch.randn(5, 1)


class Net(nn.Module):
    """Three layers with something in the middle, and parts of every kind."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 4), middle, nn.Linear(4, 1)
        self.spare = nn.Linear(2, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.middle(self.first(x))
        out = self.last(self.kept)
        assert isinstance(out, Tensor)
        return out


def test_what_can_be_batched() -> None:
    report = l2path.check(Net(nn.Tanh()), (X, Y), F.mse_loss)
    assert (report.training, report.evaluation, report.layer) == ("vmap", "vmap", None)
    assert report.trained == ("first.weight", "first.bias", "last.weight")
    assert report.frozen == ("last.bias",)
    assert report.unused == ("spare.weight", "spare.bias")
    assert report.changed == ("kept",)
    assert report.notes == ()
    text = str(report)
    assert "training:    all members at once (vmap)" in text
    assert "unused:      spare.weight, spare.bias" in text


def test_what_falls_back_names_the_layer_and_keeps_torchs_words() -> None:
    report = l2path.check(Net(nn.RReLU()), (X, Y), F.mse_loss)
    assert (report.training, report.evaluation) == ("loop", "loop")
    assert report.layer == "'middle' (RReLU)"
    assert "vmap fails in the layer 'middle' (RReLU): RuntimeError: vmap: we do not yet support" in str(report)


def test_recurrent_layers_and_slow_parts() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            out = self.inner(x)[0]
            assert isinstance(out, Tensor)
            return out

    report = l2path.check(Recurrent(), (torch.randn(5, 6, 3), torch.randn(5, 6, 4)), nn.MSELoss(reduction="sum"))
    assert (report.training, report.evaluation) == ("vmap", "vjp")
    assert len(report.notes) == 1
    assert "sums over rows" in report.notes[0]


def test_the_failing_layer_is_named() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(5, 1)))
    with pytest.raises(l2path.ArgumentError, match=r"the layer '1\.1' \(Linear\) fails: RuntimeError: mat1 and mat2"):
        l2path.check(module, (X, Y), F.mse_loss)
    with pytest.raises(l2path.ArgumentError, match=r"on which the model or the loss fails: RuntimeError"):
        l2path.check(nn.Linear(3, 4), (X, torch.randn(5, 9)), F.cross_entropy)


def backward_hook() -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 1))
    module[0].register_full_backward_hook(lambda *_: None)
    return module


def parameter_hook() -> nn.Module:
    module = nn.Linear(3, 1)
    module.weight.register_hook(lambda grad: grad)
    return module


def accumulate_hook() -> nn.Module:
    module = nn.Linear(3, 1)
    module.weight.register_post_accumulate_grad_hook(lambda p: None)
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "backward hook": (backward_hook, r"backward hooks on '0' \(Linear\)"),
    "parameter hook": (parameter_hook, "a gradient hook on the parameter 'weight'"),
    "accumulate hook": (accumulate_hook, "a gradient hook on the parameter 'weight'"),
    "sparse": (lambda: nn.Sequential(nn.Embedding(3, 2, sparse=True)), r"sparse gradients of '0' \(Embedding\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_engine_gets_right_is_refused(name: str) -> None:
    make, text = REFUSED[name]
    with pytest.raises(l2path.ArgumentError, match=f"module: got {text}; expected .* Remedy: "):
        l2path.functionalize(make())


def test_nothing_is_changed() -> None:
    module = Net(nn.Dropout(0.5))
    before = {name: p.clone() for name, p in module.named_parameters()}
    state = torch.get_rng_state()
    l2path.check(module, (X, Y), F.mse_loss)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not hasattr(module, "kept")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
