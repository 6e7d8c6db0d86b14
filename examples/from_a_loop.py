"""From the classic training loop to 50 lambdas at once, in three steps with the same numbers.

1. The tutorial's loop: a network 5-10-5, squared error, ``lambda/2 * sum(param**2)`` added to the loss.
2. The same run as a pure step.
3. The same run at 50 lambdas, all at once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

EPOCHS, LR, LAMBDA = 100, 0.3, 0.01


class Net(nn.Module):
    """Five inputs, ten hidden units, five outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 10)
        self.fc2 = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[B, 5]`` outputs."""
        out = self.fc2(torch.relu(self.fc1(x)))
        assert isinstance(out, Tensor)
        return out


def make() -> Net:
    """The network, the same weights at every call."""
    torch.manual_seed(0)
    return Net()


def data(seed: int, rows: int) -> tuple[Tensor, Tensor]:
    """Noisy linear targets of random inputs, both ``[rows, 5]``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 5, generator=generator)
    mix = torch.randn(5, 5, generator=torch.Generator().manual_seed(7))
    return x, x @ mix / 2 + torch.randn(rows, 5, generator=generator)


def classic_loop(x: Tensor, y: Tensor) -> tuple[Net, list[float]]:
    """What tutorials show."""
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    losses = []
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        loss = F.mse_loss(net(x), y)
        penalty = LAMBDA / 2 * torch.stack([(p**2).sum() for p in net.parameters()]).sum()
        (loss + penalty).backward()
        optimizer.step()
        losses.append(loss.item())
    return net, losses


def pure_step(x: Tensor, y: Tensor) -> tuple[l2path.TrainState, list[float]]:
    """The same run: the state is explicit, and the penalty is an argument."""
    net, optimizer = make(), l2path.sgd(lr=LR)
    train_step = l2path.make_train_step(net, F.mse_loss, optimizer)
    state = l2path.init_state(net, optimizer)
    losses = []
    for _ in range(EPOCHS):
        state, metrics = train_step(state, (x, y), LAMBDA)
        losses.append(float(metrics.loss))
    return state, losses


def main() -> None:
    """Run the three and compare them."""
    x, y = data(1, 20)
    net, losses = classic_loop(x, y)
    state, again = pure_step(x, y)
    gap = max(float((p.detach() - state.params[n]).abs().max()) for n, p in net.named_parameters())
    print(f"epoch   1: loss {losses[0]:.6f} in the loop, {again[0]:.6f} from train_step")
    print(f"epoch {EPOCHS}: loss {losses[-1]:.6f} in the loop, {again[-1]:.6f} from train_step")
    print(f"largest difference of any weight: {gap:.1e}\n")

    # 50 values: 49 on a log grid, one of them replaced by the lambda of the loop, and none at all.
    lambdas = l2path.lambda_grid(1e-4, 1.0, 49, zero=True)
    k = int((lambdas - LAMBDA).abs().argmin())
    lambdas[k] = LAMBDA
    result = l2path.batch_train(
        make(),
        (x, y),
        loss_fn=F.mse_loss,
        optimizer=l2path.sgd(lr=LR),
        lambdas=lambdas,
        epochs=EPOCHS,
        validation=data(2, 200),
    )
    print(result)
    gap = max(float((p.detach() - result.params[n][k]).abs().max()) for n, p in net.named_parameters())
    print(f"\nmember {k} is the loop above (lambda {LAMBDA}): largest difference of any weight {gap:.1e}")
    print(f"best lambda {result.best.lambdas:.4g}: validation loss {result.best.score:.4f}, without penalty ", end="")
    print(f"{result.scores[-1]:.4f}")


if __name__ == "__main__":
    main()
