"""The workloads in JAX: jit(scan(vmap(step))) over an epoch of batches, with donated state."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks._worker import Orders

Params = dict[str, Any]


def _normal(rng: np.random.Generator, *shape: int) -> Any:
    return jnp.asarray(rng.normal(size=shape).astype(np.float32) / np.sqrt(shape[0]))


def _dense(rng: np.random.Generator, *sizes: int) -> Params:
    pairs = list(itertools.pairwise(sizes))
    return {f"w{i}": _normal(rng, a, b) for i, (a, b) in enumerate(pairs)} | {
        f"b{i}": jnp.zeros(b) for i, (_, b) in enumerate(pairs)
    }


def _cross_entropy(logits: Any, y: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()


def _mse(out: Any, y: Any) -> Any:
    return jnp.square(out - y).mean()


def _tiny(p: Params, x: Any) -> Any:
    return jnp.tanh(x @ p["w0"] + p["b0"]) @ p["w1"] + p["b1"]


def _mlp(p: Params, x: Any) -> Any:
    for i in (0, 1):
        x = jax.nn.relu(x @ p[f"w{i}"] + p[f"b{i}"])
    return x @ p["w2"] + p["b2"]


def _lstm(p: Params, x: Any) -> Any:
    def cell(carry: Any, xt: Any) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(xt + h @ p["wh"], 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zero = jnp.zeros((x.shape[0], 32))
    (h, _), _ = jax.lax.scan(cell, (zero, zero), (x @ p["wx"] + p["b"]).swapaxes(0, 1))
    return h @ p["w0"] + p["b0"]


def _norm(x: Any, scale: Any, shift: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-5) * scale + shift


def _tfm(p: Params, x: Any) -> Any:
    b, s, d = x.shape
    q, k, v = (t.reshape(b, s, 4, d // 4).swapaxes(1, 2) for t in jnp.split(x @ p["qkv"] + p["qkv_b"], 3, -1))
    a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / np.sqrt(d // 4)) @ v
    x = _norm(x + a.swapaxes(1, 2).reshape(b, s, d) @ p["o"] + p["o_b"], p["s0"], p["t0"])
    x = _norm(x + jax.nn.relu(x @ p["f0"] + p["f0_b"]) @ p["f1"] + p["f1_b"], p["s1"], p["t1"])
    return x.mean(1) @ p["w0"] + p["b0"]


def _cnn(p: Params, x: Any) -> Any:
    # A convolution of each member with kernels of its own is slow in XLA on CPUs (18 model-steps a second against 330
    # here), and so is the gradient of reduce_window: both are written as what XLA is good at, channels last.
    x = x.swapaxes(1, 2).swapaxes(2, 3)  # [B, H, W, C]
    for i in (0, 1):
        h, w = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        columns = jnp.concatenate([padded[:, a : a + h, b : b + w] for a in range(3) for b in range(3)], -1)
        kernel = p[f"c{i}"].transpose(2, 3, 1, 0).reshape(columns.shape[-1], -1)
        x = jax.nn.relu(columns @ kernel + p[f"d{i}"])
        x = x.reshape(x.shape[0], h // 2, 2, w // 2, 2, -1).max((2, 4))
    return x.reshape(x.shape[0], -1) @ p["w0"] + p["b0"]


def _plain_cnn(p: Params, x: Any) -> Any:
    # The same with convolutions as such, as most people would write them.
    for i in (0, 1):
        x = jax.lax.conv_general_dilated(x, p[f"c{i}"], (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))
        x = jax.nn.relu(x + p[f"d{i}"][:, None, None])
        h, w = x.shape[2:]
        x = x.reshape(*x.shape[:2], h // 2, 2, w // 2, 2).max((3, 5))
    return x.reshape(x.shape[0], -1) @ p["w0"] + p["b0"]


def _workload(
    name: str, batches: int, rng: np.random.Generator, *, plain: bool
) -> tuple[Params, Callable[[Params, Any], Any], Any, Any]:
    """Return parameters, forward pass, inputs and targets of an epoch."""

    def rows(batch: int, *shape: int) -> Any:
        return jnp.asarray(rng.normal(size=(batches, batch, *shape)).astype(np.float32))

    def labels(batch: int) -> Any:
        return jnp.asarray(rng.integers(0, 10, size=(batches, batch)))

    if name == "tiny":
        return _dense(rng, 13, 32, 1), _tiny, rows(32, 13), rows(32, 1)
    if name == "mlp":
        return _dense(rng, 64, 128, 128, 10), _mlp, rows(128, 64), labels(128)
    if name == "lstm":
        p = {"wx": _normal(rng, 4, 128), "wh": _normal(rng, 32, 128), "b": jnp.zeros(128)} | _dense(rng, 32, 1)
        return p, _lstm, rows(32, 24, 4), rows(32, 1)
    if name == "tfm":
        p = {"qkv": _normal(rng, 64, 192), "o": _normal(rng, 64, 64), "f0": _normal(rng, 64, 128)}
        p |= {"f1": _normal(rng, 128, 64)} | _dense(rng, 64, 10)
        p |= {f"{n}_b": jnp.zeros(p[n].shape[1]) for n in ("qkv", "o", "f0", "f1")}
        p |= {n: jnp.ones(64) for n in ("s0", "s1")} | {n: jnp.zeros(64) for n in ("t0", "t1")}
        return p, _tfm, rows(32, 16, 64), labels(32)
    if name != "cnn":
        raise ValueError(f"{name} has not been written in JAX")
    p = {"c0": _normal(rng, 16, 1, 3, 3), "c1": _normal(rng, 32, 16, 3, 3), "d0": jnp.zeros(16), "d1": jnp.zeros(32)}
    return p | _dense(rng, 512, 10), _plain_cnn if plain else _cnn, rows(64, 1, 16, 16), labels(64)


def train(name: str, members: int, batches: int, epochs: int, orders: Orders, *, plain: bool = False) -> None:
    """Train all members; ``orders`` is called after each epoch. ``plain``: convolutions are written as such."""
    params, forward, x, y = _workload(name, batches, np.random.default_rng(0), plain=plain)
    loss = _mse if name in ("tiny", "lstm") else _cross_entropy
    lambdas = jnp.logspace(-6, -2, members)
    tree = jax.tree_util.tree_map
    orders.wait()

    def step(p: Params, v: Params, lam: Any, xb: Any, yb: Any) -> Any:
        value, grads = jax.value_and_grad(lambda q: loss(forward(q, xb), yb))(p)
        v = tree(lambda m, g, w: 0.9 * m + g + lam * w, v, grads, p)
        return tree(lambda w, m: w - 0.01 * m, p, v), v, value

    def epoch(p: Params, v: Params, lam: Any, xs: Any, ys: Any) -> Any:
        def body(carry: Any, batch: Any) -> Any:
            members: Any = jax.vmap(step, in_axes=(0, 0, 0, None, None))
            p, v, value = members(*carry, lam, *batch)
            return (p, v), value

        return jax.lax.scan(body, (p, v), (xs, ys))

    run = jax.jit(epoch, donate_argnums=(0, 1))
    p = tree(lambda w: jnp.repeat(w[None], members, 0), params)
    v = tree(jnp.zeros_like, p)
    for _ in range(epochs):
        (p, v), values = run(p, v, lambdas, x, y)
        values.block_until_ready()
        if not orders(members * batches):
            return
