"""``from_keras`` against Keras 3 itself, on its torch backend: the same weights after the same steps.

In float32: that backend multiplies matrices in float32 whatever its ``floatx`` is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path
from tests.helpers import assert_trees_close
from tests.models import BATCH, classes

RTOL = 2e-6  # of float32, after 240 steps of a smooth model
EPOCHS, LR, MOMENTUM = 40, 0.1, 0.9
L = 0.01  # in Keras' units


@pytest.fixture(scope="module")
def keras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:  # a package without types
    """Keras on torch. Importing it chooses the backend of the process; no other module of the tests imports it."""
    drawn = random.getstate(), np.random.get_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))  # where it writes its settings
        module = pytest.importorskip("keras")
    random.setstate(drawn[0])  # importing it draws from both generators
    np.random.set_state(drawn[1])
    assert module.backend.backend() == "torch"
    with module.device("cpu"):
        yield module


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3))


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def data() -> tuple[Tensor, Tensor]:
    x, y = classes()
    return x.float(), y


def train_keras(
    keras: Any, module: nn.Module, strengths: Mapping[str, float], decay: float | None = None
) -> dict[str, Tensor]:
    """Train the same network in Keras, on the same batches; ``strengths`` go by torch's names of the parameters."""
    twin = keras.Sequential([keras.Input((5,))])
    variables: dict[str, Any] = {}
    for index, layer in module.named_children():
        if not isinstance(layer, nn.Linear):
            twin.add(keras.layers.Activation("tanh"))
            continue
        penalty = {n: keras.regularizers.L2(strengths.get(f"{index}.{n}", 0.0)) for n in ("weight", "bias")}
        dense = keras.layers.Dense(
            layer.out_features,
            kernel_regularizer=penalty["weight"],
            bias_regularizer=penalty["bias"],
            kernel_initializer="zeros",  # the default draws from Python's generator
        )
        twin.add(dense)
        dense.set_weights([layer.weight.detach().numpy().T, layer.bias.detach().numpy()])
        variables |= {f"{index}.weight": dense.kernel, f"{index}.bias": dense.bias}
    twin.compile(
        optimizer=keras.optimizers.SGD(learning_rate=LR, momentum=MOMENTUM, weight_decay=decay),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    x, y = data()
    for epoch in range(EPOCHS):
        for rows in l2path.data_order(len(x), seed=0, epoch=epoch).split(BATCH):
            twin.train_on_batch(x[rows].numpy(), y[rows].numpy())
    values = {name: variable.value.detach().clone() for name, variable in variables.items()}
    return {name: value.T if name.endswith("weight") else value for name, value in values.items()}


train = partial(
    l2path.batch_train,
    loss_fn=F.cross_entropy,
    optimizer=l2path.sgd(lr=LR, momentum=MOMENTUM),
    epochs=EPOCHS,
    batch_size=BATCH,
    seed=0,
)


@pytest.mark.parametrize("make", [linear, perceptron])
def test_kernel_regularizer(keras: Any, make: Any) -> None:
    module = make()
    names = [name for name, _ in module.named_parameters() if name.endswith("weight")]
    expected = train_keras(keras, module, dict.fromkeys(names, L))
    right = l2path.from_keras(L)
    # Beside it, in the same run, what a forgotten half and an error of one percent give.
    result = train(make(), data(), lambdas=l2path.weights_only([right, L, 4 * L, 1.01 * right]))
    assert_trees_close(result.member(0).params, expected, RTOL)
    for wrong in (1, 2, 3):
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(result.member(wrong).params, expected, 10 * RTOL)


def test_a_strength_for_each_layer_and_for_biases(keras: Any) -> None:
    strengths = {"0.weight": 0.02, "0.bias": 0.05, "2.weight": 0.005}
    expected = train_keras(keras, perceptron(), strengths)
    lambdas = {name: [l2path.from_keras(value)] for name, value in strengths.items()}
    assert_trees_close(train(perceptron(), data(), lambdas=lambdas).member(0).params, expected, RTOL)


def test_to_keras(keras: Any) -> None:
    ours = {"0.weight": 0.03}
    expected = train_keras(keras, linear(), {name: l2path.to_keras(lam) for name, lam in ours.items()})
    assert_trees_close(train(linear(), data(), lambdas={"0.weight": [0.03]}).member(0).params, expected, RTOL)


def test_weight_decay_of_keras_is_decoupled(keras: Any) -> None:
    # weight_decay of its optimizers, SGD's too, shrinks the weights beside the step, as AdamW does: it has no lambda.
    expected = train_keras(keras, linear(), {}, decay=0.02)
    module = linear()
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=MOMENTUM)
    x, y = data()
    for epoch in range(EPOCHS):
        for rows in l2path.data_order(len(x), seed=0, epoch=epoch).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(module(x[rows]), y[rows]).backward()
            for p in module.parameters():
                p.data.mul_(1 - LR * 0.02)
            optimizer.step()
    assert_trees_close(dict(module.named_parameters()), expected, RTOL)
    coupled = train(linear(), data(), lambdas=[0.02]).member(0).params
    with pytest.raises(AssertionError, match="relative difference"):
        assert_trees_close(coupled, expected, 10 * RTOL)
