"""Families of modules and losses that ``batch_train`` is driven through, one small case each."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import l2path
from l2path.losses import ModelLoss
from l2path.trees import tree_map

# 11 rows to train on in batches of 4, 4 and 3; 6 to validate on.
ROWS, HELD_OUT, BATCH = 11, 6, 4
LAMBDAS = (0.3, 0.01, 0.0)
LR, MOMENTUM, EPOCHS, SEED = 0.02, 0.9, 2, 3

Data = Any  # (inputs, targets), or the whole batch of a model with a loss of its own
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Family:
    """One kind of module, with data and a loss that suit it.

    Attributes
    ----------
    name, group : str
    make : callable
        Returns the module, float64, the same one at every call.
    data : callable
        Returns ``(inputs, targets)``, or what goes to a model with a loss of its own, with ``ROWS + HELD_OUT`` rows.
    loss_fn : callable
    engine : {"vmap", "loop", "refused"}
        What ``engine="auto"`` is expected to come to.
    evaluation : {"batched", "looped"}
        How outputs in eval mode are expected to be computed.
    note : str
        For the table in the docs.
    replaces : str
        A torch function that an equivalent is expected to stand in for.
    warns : warning class, optional
        Expected beside the ``EngineWarning`` of what is looped.
    slow : bool
        Left out by default.
    """

    name: str
    group: str
    make: Callable[[], nn.Module]
    data: Callable[[], Data]
    loss_fn: Loss
    engine: Literal["vmap", "loop", "refused"] = "vmap"
    evaluation: Literal["batched", "looped"] = "batched"
    note: str = ""
    replaces: str = ""
    warns: type[Warning] | None = None
    slow: bool = False

    @property
    def train_data(self) -> Data:
        """The rows to train on."""
        found: Data = tree_map(lambda x: x[:ROWS], self.data())
        return found

    @property
    def validation(self) -> Data:
        """The rows held out."""
        found: Data = tree_map(lambda x: x[ROWS:], self.data())
        return found

    @property
    def inputs(self) -> Any:
        """What of the rows held out goes to the module."""
        return self.validation if isinstance(self.loss_fn, ModelLoss) else self.validation[0]


def train(family: Family, module: nn.Module | None = None, **options: Any) -> l2path.PathResult:
    """Train a family at every lambda: the run that the contract and the table of the docs look at."""
    settings: dict[str, Any] = {
        "loss_fn": family.loss_fn, "optimizer": l2path.sgd(lr=LR, momentum=MOMENTUM), "lambdas": list(LAMBDAS),
        "epochs": EPOCHS, "batch_size": BATCH, "seed": SEED, "validation": family.validation,
    }  # fmt: skip
    return l2path.batch_train(module or family.make(), family.train_data, **(settings | options))


# --- data -------------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Normal numbers with one row for each example."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS + HELD_OUT, *shape, generator=generator, dtype=torch.float64)


def whole(high: int, *shape: int, low: int = 0, seed: int = 2) -> Tensor:
    """Whole numbers from ``low`` to ``high - 1``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, (ROWS + HELD_OUT, *shape), generator=generator)


def numbers(*shape: int) -> Callable[[], Data]:
    """Inputs of a shape, and two numbers to regress on."""
    return lambda: (normal(*shape), normal(2, seed=2))


def labels(*shape: int) -> Callable[[], Data]:
    """Inputs of a shape, and three classes."""
    return lambda: (normal(*shape), whole(3))


def tokens(length: int = 6) -> Callable[[], Data]:
    """Sequences of tokens below 10, and three classes."""
    return lambda: (whole(10, length, seed=1), whole(3))


def lengths() -> Tensor:
    """Lengths of sequences of up to 5 steps."""
    return torch.arange(ROWS + HELD_OUT) % 4 + 2


def ragged() -> Data:
    """Sequences padded to 5 steps with their lengths, and two numbers to regress on."""
    return (normal(5, 3), lengths()), normal(2, seed=2)


# --- modules ----------------------------------------------------------------------------------------------------------


class Wired(nn.Module):
    """Parts (modules, parameters) and a function ``forward(module, *inputs)`` that wires them up."""

    def __init__(self, wiring: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.wiring = wiring
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.wiring(self, *args, **kwargs)


class ResidualBlock(nn.Module):
    """Two convolutions with BatchNorm and a shortcut of its own."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, bias=False), nn.BatchNorm2d(out))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.norm1(self.first(x)))
        h = self.norm2(self.second(h))
        h += self.shortcut(x)
        return F.relu(h)


class Forecaster(nn.Module):
    """An LSTM over a window, normalised, and a head for the next two values."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, num_layers=2, batch_first=True)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(self.lstm(x)[0][:, -1]))


class TextClassifier(nn.Module):
    """Embeddings with positions, a padding mask, two encoder layers and a mean over tokens."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8, padding_idx=0)
        self.position = nn.Parameter(torch.randn(6, 8) / 10)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=dropout, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Any:
        padding = tokens == 0
        h = self.encoder(self.embedding(tokens) + self.position, src_key_padding_mask=padding)
        keep = (~padding).unsqueeze(-1)
        return self.head((h * keep).sum(1) / keep.sum(1).clamp(min=1))


class CausalAttention(nn.Module):
    """``scaled_dot_product_attention`` with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        h = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(h.transpose(1, 2).flatten(2).mean(1))


class Tied(nn.Module):
    """Output weights that are the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.hidden = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 10, bias=False)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.decoder(torch.tanh(self.hidden(self.embedding(tokens).mean(1))))


def seeded(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a function that builds the same float64 module at every call."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build().double()

    return make


def between(layer: Callable[[], nn.Module], features: int = 6) -> Callable[[], nn.Module]:
    """A layer between two linear ones: ``[B, 5]`` to ``[B, 2]``."""
    return lambda: nn.Sequential(nn.Linear(5, features), layer(), nn.Linear(features, 2))


def image(*layers: Callable[[], nn.Module], features: int) -> Callable[[], nn.Module]:
    """Layers and a linear head on what they put out, flattened."""
    return lambda: nn.Sequential(*(layer() for layer in layers), nn.Flatten(), nn.Linear(features, 2))


def recurrent(layer: Callable[[], nn.Module], features: int, *, time: int = 1) -> Callable[[], nn.Module]:
    """A recurrent layer and a head on its mean over time."""

    def wiring(m: Any, x: Tensor) -> Any:
        h, _ = m.rnn(x if time == 1 else x.transpose(0, 1))
        return m.head(h.mean(time))

    return lambda: Wired(wiring, rnn=layer(), head=nn.Linear(features, 2))


def packed(layer: Callable[[], nn.Module]) -> nn.Module:
    """A recurrent layer over packed sequences, and a head on the sum over time."""

    def wiring(m: Any, x: Tensor, n: Tensor) -> Any:
        first = m.rnn.batch_first
        rows = pack_padded_sequence(x if first else x.transpose(0, 1), n, batch_first=first, enforce_sorted=False)
        h, _ = pad_packed_sequence(m.rnn(rows)[0], batch_first=first, padding_value=0.5, total_length=6)
        return m.head(h.sum(1 if first else 0))

    rnn = layer()
    size = (getattr(rnn, "proj_size", 0) or 4) * (2 if rnn.bidirectional else 1)
    return Wired(wiring, rnn=rnn, head=nn.Linear(size, 2))


def over_time(m: Any, x: Tensor) -> Any:
    """Call a cell once for each step."""
    h = None
    for t in range(x.shape[1]):
        h = m.cell(x[:, t], h)
    return m.head(h[0] if isinstance(h, tuple) else h)


def encoder(**options: Any) -> Callable[[], nn.Module]:
    """One encoder layer and a head on the mean over positions."""
    return lambda: Wired(
        lambda m, x: m.head(m.layer(x).mean(1)),
        layer=nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **options),
        head=nn.Linear(4, 2),
    )


def attention(m: Any, x: Tensor) -> Any:
    """Self-attention, and a head on the mean over positions."""
    return m.head(m.attention(x, x, x, need_weights=False)[0].mean(1))


def with_frozen() -> nn.Module:
    """The first layer does not learn."""
    module = between(nn.Tanh)()
    next(module.children()).requires_grad_(False)
    return module


def with_eval_norm() -> nn.Module:
    """A BatchNorm in eval mode inside a module in train mode, as in fine-tuning."""
    module = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    module[1].eval()
    return module


def pruned() -> nn.Module:
    """Weights with a mask, as ``torch.nn.utils.prune`` leaves them."""
    module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2))
    prune.random_unstructured(module[0], "weight", 0.4)
    return module


def old_weight_norm() -> nn.Module:
    """``torch.nn.utils.weight_norm``, which computes the weight in a hook and keeps it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2))


def hooked() -> nn.Module:
    """A forward hook that changes what a layer puts out."""
    module = between(nn.Tanh)()
    next(module.children()).register_forward_hook(lambda _, __, output: 0.5 * output)
    return module


def with_backward_hook() -> nn.Module:
    """A full backward hook, which no transform calls."""
    module = between(nn.Tanh)()
    next(module.children()).register_full_backward_hook(lambda *_: None)
    return module


def with_parameter_hook() -> nn.Module:
    """A hook on a parameter's gradient."""
    module = nn.Linear(5, 2)
    module.weight.register_hook(lambda gradient: 2 * gradient)
    return module


def masked(m: Any, x: Tensor) -> Any:
    """Rows chosen by what a member computes."""
    h = m.linear(x)
    out = torch.zeros_like(h)
    chosen = h[:, 0] > 0
    out[chosen] = 2 * h[chosen]
    return out + 0.1 * h


def branching(m: Any, x: Tensor) -> Any:
    """Python control flow on what a member computes."""
    h = m.linear(x)
    return torch.tanh(h) if h.mean() > 0 else h


def reading(m: Any, x: Tensor) -> Any:
    """A number taken out of a tensor."""
    h = m.linear(x)
    return h / (1 + h.detach().abs().max().item())


class OldSquare(torch.autograd.Function):
    """A function of the old style, which no transform takes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * grads[0]


class Square(torch.autograd.Function):
    """A function that torch can write a batching rule for."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return 2 * ctx.saved_tensors[0] * grads[0]


def square(m: Any, x: Tensor) -> Any:
    return Square.apply(m.linear(x))  # type: ignore[no-untyped-call]  # of torch


def old_square(m: Any, x: Tensor) -> Any:
    return OldSquare.apply(m.linear(x))  # type: ignore[no-untyped-call]  # of torch


def scripted() -> nn.Module:
    """TorchScript."""
    found: nn.Module = torch.jit.script(nn.Linear(5, 2))
    return found


# --- losses -----------------------------------------------------------------------------------------------------------


def cosine(outputs: Any, targets: Tensor) -> Tensor:
    return F.cosine_embedding_loss(outputs[0], outputs[1], targets, margin=0.1)


def triplet(outputs: Any, targets: Tensor) -> Tensor:
    anchor, positive, negative = outputs
    return F.triplet_margin_loss(anchor, positive, negative, margin=3.0)


def ctc(outputs: Tensor, targets: Any) -> Tensor:
    return F.ctc_loss(outputs.log_softmax(-1).transpose(0, 1), *targets)


def gaussian(outputs: Any, targets: Tensor) -> Tensor:
    return F.gaussian_nll_loss(outputs[0], targets, outputs[1])


def two_heads(outputs: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    return F.cross_entropy(outputs["kind"], targets["kind"]) + F.mse_loss(outputs["size"], targets["size"])


mlp = seeded(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)))
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)


def with_loss(name: str, loss_fn: Loss, targets: Callable[[], Any], **flags: Any) -> Family:
    """A loss on three outputs of a small network."""
    return Family(name, "losses", mlp, lambda: (normal(5), targets()), loss_fn, **flags)


def simple(
    group: str, name: str, build: Callable[[], nn.Module], data: Callable[[], Data], loss_fn: Loss = F.mse_loss,
    **flags: Any,
) -> Family:  # fmt: skip
    """A family whose module is seeded here."""
    return Family(name, group, seeded(build), data, loss_fn, **flags)


dense = partial(simple, "dense")
conv = partial(simple, "convolutions")
pool = partial(simple, "pooling and reshaping")
norm = partial(simple, "normalisation")
noise = partial(simple, "dropout")
embed = partial(simple, "embeddings", loss_fn=F.cross_entropy)
rnn = partial(simple, "recurrent")
heads = partial(simple, "attention")
params = partial(simple, "parameters")
flow = partial(simple, "control flow")
shape = partial(simple, "inputs and outputs")
real = partial(simple, "architectures")
refused = partial(simple, "refused", engine="refused")

small = (2, 6, 6)
steps = (5, 3)

FAMILIES: tuple[Family, ...] = (
    dense("Linear", lambda: nn.Linear(5, 2), numbers(5)),
    *(
        dense(f"Linear, {a.__name__}", between(a), numbers(5))
        for a in (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.PReLU, nn.Softplus, nn.Mish)
    ),
    dense("Linear, ReLU(inplace)", between(lambda: nn.ReLU(inplace=True)), numbers(5)),
    dense("Linear, GLU", lambda: nn.Sequential(nn.Linear(5, 6), nn.GLU(), nn.Linear(3, 2)), numbers(5)),
    dense("Linear, Softmax", between(lambda: nn.Softmax(1)), numbers(5)),
    dense("Linear, RReLU", between(nn.RReLU), numbers(5), engine="loop", evaluation="looped"),
    dense(
        "Bilinear",
        lambda: Wired(lambda m, x, y: m.bilinear(x, y), bilinear=nn.Bilinear(3, 4, 2)),
        lambda: ((normal(3), normal(4, seed=3)), normal(2, seed=2)),
    ),
    conv("Conv1d", image(lambda: nn.Conv1d(2, 3, 3), nn.Tanh, features=12), numbers(2, 6)),
    conv("Conv2d", image(lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh, features=27), numbers(*small)),
    conv("Conv3d", image(lambda: nn.Conv3d(1, 2, 2), nn.Tanh, features=16), numbers(1, 3, 3, 3)),
    conv("ConvTranspose1d", image(lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), features=39), numbers(2, 6)),
    conv("ConvTranspose2d", image(lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), features=48), numbers(2, 2, 2)),
    conv("Conv2d, grouped", image(lambda: nn.Conv2d(4, 4, 3, groups=2), features=16), numbers(4, 4, 4)),
    conv("Conv2d, depthwise", image(lambda: nn.Conv2d(4, 8, 3, groups=4), features=32), numbers(4, 4, 4)),
    conv("Conv2d, dilated", image(lambda: nn.Conv2d(2, 2, 2, dilation=2), features=32), numbers(*small)),
    conv(
        "Conv2d, circular padding",
        image(lambda: nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), features=32),
        numbers(2, 4, 4),
    ),
    conv(
        "Conv1d, reflected padding",
        image(lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="reflect"), features=18),
        numbers(2, 6),
    ),
    *(
        pool(name, image(lambda: nn.Conv2d(2, 2, 3), layer, features=n), numbers(*small))
        for name, layer, n in (
            ("MaxPool2d", lambda: nn.MaxPool2d(2), 8),
            ("AvgPool2d", lambda: nn.AvgPool2d(2), 8),
            ("AdaptiveAvgPool2d", lambda: nn.AdaptiveAvgPool2d(3), 18),
            ("AdaptiveMaxPool2d", lambda: nn.AdaptiveMaxPool2d(3), 18),
            ("Upsample", lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 128),
            ("FractionalMaxPool2d", lambda: nn.FractionalMaxPool2d(2, output_size=2), 8),
            ("LPPool2d", lambda: nn.LPPool2d(2, 2), 8),
            ("PixelUnshuffle", lambda: nn.PixelUnshuffle(2), 32),
            ("ReflectionPad2d", lambda: nn.ReflectionPad2d(1), 72),
            ("Unfold", lambda: nn.Unfold(2, stride=2), 32),
        )
    ),
    norm("BatchNorm1d", between(lambda: nn.BatchNorm1d(6)), numbers(5), note="running statistics of each member"),
    norm("BatchNorm2d", image(lambda: nn.Conv2d(2, 3, 3), lambda: nn.BatchNorm2d(3), features=48), numbers(*small)),
    norm("BatchNorm1d, momentum=None", between(lambda: nn.BatchNorm1d(6, momentum=None)), numbers(5), replaces="float"),
    norm("BatchNorm1d, no affine", between(lambda: nn.BatchNorm1d(6, affine=False)), numbers(5)),
    norm("BatchNorm1d, no tracking", between(lambda: nn.BatchNorm1d(6, track_running_stats=False)), numbers(5)),
    norm("BatchNorm1d, one in eval mode", with_eval_norm, numbers(5), note="its statistics stay as they are"),
    norm("LayerNorm", between(lambda: nn.LayerNorm(6)), numbers(5)),
    norm("GroupNorm", image(lambda: nn.Conv2d(2, 4, 3), lambda: nn.GroupNorm(2, 4), features=64), numbers(*small)),
    norm(
        "InstanceNorm2d",
        image(lambda: nn.Conv2d(2, 3, 3), lambda: nn.InstanceNorm2d(3, affine=True), features=48),
        numbers(*small),
    ),
    norm("LocalResponseNorm", image(lambda: nn.Conv2d(2, 4, 3), lambda: nn.LocalResponseNorm(2), features=64),
         numbers(*small)),
    norm("RMSNorm", between(lambda: nn.RMSNorm(6)), numbers(5)),
    noise("Dropout", between(lambda: nn.Dropout(0.3)), numbers(5), replaces="dropout",
          note="masks are shared by all lambdas of a seed"),
    noise("Dropout2d", image(lambda: nn.Conv2d(2, 4, 3), lambda: nn.Dropout2d(0.3), features=64), numbers(*small),
          replaces="dropout2d"),
    noise("Dropout on sequences, transposed", lambda: Wired(
        lambda m, x: m.head(F.dropout(m.first(x).transpose(1, 2), 0.3, m.training).mean(2)),
        first=nn.Linear(3, 4), head=nn.Linear(4, 2)), numbers(*steps), replaces="dropout"),
    noise("AlphaDropout on sequences, transposed", lambda: Wired(
        lambda m, x: m.head(F.alpha_dropout(m.first(x).transpose(1, 2), 0.3, m.training).mean(2)),
        first=nn.Linear(3, 4), head=nn.Linear(4, 2)), numbers(*steps), replaces="alpha_dropout"),
    noise("noise added to inputs", lambda: Wired(
        lambda m, x: m.linear(x + 0.1 * torch.randn_like(x) if m.training else x), linear=nn.Linear(5, 2)),
        numbers(5), replaces="randn_like"),
    noise("Gumbel softmax", lambda: Wired(
        lambda m, x: m.head(F.gumbel_softmax(m.first(x), tau=2.0) if m.training else m.first(x).softmax(1)),
        first=nn.Linear(5, 4), head=nn.Linear(4, 2)), numbers(5)),
    noise("AlphaDropout", between(lambda: nn.AlphaDropout(0.3)), numbers(5), replaces="alpha_dropout"),
    embed("Embedding", lambda: Wired(lambda m, x: m.head(m.embedding(x).mean(1)), embedding=nn.Embedding(10, 4),
          head=nn.Linear(4, 3)), tokens()),
    embed("Embedding, padding_idx", lambda: Wired(lambda m, x: m.head(m.embedding(x).mean(1)),
          embedding=nn.Embedding(10, 4, padding_idx=0), head=nn.Linear(4, 3)), tokens()),
    embed("Embedding, max_norm", lambda: Wired(lambda m, x: m.head(m.embedding(x).mean(1)),
          embedding=nn.Embedding(10, 4, max_norm=1.0), head=nn.Linear(4, 3)), tokens()),
    embed("EmbeddingBag, sum with weights", lambda: Wired(
        lambda m, x, w: m.head(m.bag(x, per_sample_weights=w)), bag=nn.EmbeddingBag(10, 4, mode="sum"),
        head=nn.Linear(4, 3)), lambda: ((whole(10, 6, seed=1), normal(6)), whole(3))),
    embed("EmbeddingBag", lambda: nn.Sequential(nn.EmbeddingBag(10, 4, mode="mean"), nn.Linear(4, 3)), tokens()),
    rnn("RNN", recurrent(lambda: nn.RNN(3, 4, batch_first=True), 4), numbers(*steps)),
    rnn("GRU", recurrent(lambda: nn.GRU(3, 4, batch_first=True), 4), numbers(*steps)),
    rnn("LSTM", recurrent(lambda: nn.LSTM(3, 4, batch_first=True), 4), numbers(*steps)),
    rnn("LSTM, time first", recurrent(lambda: nn.LSTM(3, 4), 4, time=0), numbers(*steps)),
    rnn("LSTM, bidirectional", recurrent(lambda: nn.LSTM(3, 4, bidirectional=True, batch_first=True), 8),
        numbers(*steps)),
    rnn("GRU, bidirectional", recurrent(lambda: nn.GRU(3, 4, bidirectional=True, batch_first=True), 8),
        numbers(*steps)),
    rnn("LSTM, two layers, dropout", recurrent(lambda: nn.LSTM(3, 4, 2, dropout=0.3, batch_first=True), 4),
        numbers(*steps)),
    rnn("GRU, two layers, dropout", recurrent(lambda: nn.GRU(3, 4, 2, dropout=0.3, batch_first=True), 4),
        numbers(*steps)),
    rnn("LSTM, proj_size", recurrent(lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True), 2), numbers(*steps)),
    rnn("GRU, learned first state", lambda: Wired(
        lambda m, x: m.head(m.rnn(x, m.first.expand(1, len(x), 4).contiguous())[1][0]),
        rnn=nn.GRU(3, 4, batch_first=True), first=nn.Parameter(torch.randn(1, 1, 4)), head=nn.Linear(4, 2)),
        numbers(*steps)),
    rnn("RNNCell", lambda: Wired(over_time, cell=nn.RNNCell(3, 4), head=nn.Linear(4, 2)), numbers(*steps)),
    rnn("LSTMCell", lambda: Wired(over_time, cell=nn.LSTMCell(3, 4), head=nn.Linear(4, 2)), numbers(*steps)),
    rnn("GRUCell", lambda: Wired(over_time, cell=nn.GRUCell(3, 4), head=nn.Linear(4, 2)), numbers(*steps)),
    rnn(
        "LSTM, PackedSequence",
        lambda: Wired(
            lambda m, x, n: m.head(
                pad_packed_sequence(
                    m.rnn(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[0], batch_first=True
                )[0].sum(1)
            ),
            rnn=nn.LSTM(3, 4, batch_first=True), head=nn.Linear(4, 2),
        ),
        ragged, replaces="lstm",
    ),
    rnn(
        "GRU, PackedSequence",
        lambda: Wired(
            lambda m, x, n: m.head(m.rnn(pack_padded_sequence(x, n, batch_first=True, enforce_sorted=False))[1][0]),
            rnn=nn.GRU(3, 4, batch_first=True), head=nn.Linear(4, 2),
        ),
        ragged, replaces="gru",
    ),
    *(
        rnn(f"{name}, PackedSequence", partial(packed, layer), ragged, replaces="pad_packed_sequence")
        for name, layer in (
            ("LSTM, bidirectional, two layers, dropout", partial(
                nn.LSTM, 3, 4, 2, dropout=0.3, bidirectional=True, batch_first=True)),
            ("LSTM, proj_size, no biases", partial(nn.LSTM, 3, 4, proj_size=2, bias=False, batch_first=True)),
            ("GRU, bidirectional", partial(nn.GRU, 3, 4, bidirectional=True, batch_first=True)),
            ("RNN, relu, time first", partial(nn.RNN, 3, 4, nonlinearity="relu")),
        )
    ),
    heads("MultiheadAttention", lambda: Wired(
        attention, attention=nn.MultiheadAttention(4, 2, batch_first=True), head=nn.Linear(4, 2)), numbers(5, 4)),
    heads("MultiheadAttention, dropout", lambda: Wired(
        attention, attention=nn.MultiheadAttention(4, 2, dropout=0.3, batch_first=True), head=nn.Linear(4, 2)),
        numbers(5, 4), replaces="scaled_dot_product_attention"),
    heads("MultiheadAttention, padding mask", lambda: Wired(
        lambda m, x, n: m.head(m.attention(
            x, x, x, key_padding_mask=torch.arange(5) >= n.unsqueeze(1), need_weights=False)[0].mean(1)),
        attention=nn.MultiheadAttention(3, 1, batch_first=True), head=nn.Linear(3, 2)), ragged),
    heads("TransformerDecoderLayer", lambda: Wired(
        lambda m, x, memory: m.head(m.layer(
            x, memory, tgt_mask=nn.Transformer.generate_square_subsequent_mask(5, dtype=x.dtype)).mean(1)),
        layer=nn.TransformerDecoderLayer(4, 2, 6, dropout=0.0, batch_first=True), head=nn.Linear(4, 2)),
        lambda: ((normal(5, 4), normal(3, 4, seed=3)), normal(2, seed=2))),
    heads("TransformerEncoderLayer", encoder(dropout=0.0), numbers(5, 4)),
    heads("TransformerEncoderLayer, norm_first", encoder(dropout=0.0, norm_first=True), numbers(5, 4)),
    heads("TransformerEncoderLayer, dropout", encoder(dropout=0.2), numbers(5, 4),
          replaces="dropout"),
    heads("TransformerEncoder, two layers", lambda: Wired(
        lambda m, x: m.head(m.encoder(x).mean(1)),
        encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True), 2, enable_nested_tensor=False),
        head=nn.Linear(4, 2)), numbers(5, 4)),
    heads("scaled_dot_product_attention, causal", CausalAttention, numbers(5, 4)),
    params("weight_norm", lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)), numbers(5)),
    params("weight_norm on Conv1d", lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(2, 3, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)), numbers(2, 6)),
    params("spectral_norm", lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)), numbers(5),
        replaces="normalize(out=)"),
    params("spectral_norm on Conv2d", lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Conv2d(2, 3, 3)), nn.Tanh(), nn.Flatten(), nn.Linear(48, 2)),
        numbers(*small), replaces="normalize(out=)"),
    params("weight_norm of old", old_weight_norm, numbers(5)),
    params("pruned weights", pruned, numbers(5), note="the mask stays, and what it hides is only shrunk"),
    params("orthogonal", lambda: nn.Sequential(
        parametrizations.orthogonal(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 2)), numbers(5)),
    params("tied weights", Tied, lambda: (whole(10, 6, seed=1), whole(10)), F.cross_entropy,
           note="penalised once"),
    params("frozen layer", with_frozen, numbers(5), note="never updated, never penalised"),
    params("unused parameter", lambda: Wired(
        lambda m, x: m.linear(x), linear=nn.Linear(5, 2), spare=nn.Parameter(torch.ones(3))), numbers(5),
        warns=l2path.UnusedParameterWarning, note="frozen, with a warning"),
    params("ParameterList", lambda: Wired(
        lambda m, x: x @ (m.weights[0] * 0.5 + m.weights[1]),
        weights=nn.ParameterList([torch.randn(5, 2), torch.randn(5, 2)])), numbers(5)),
    params("ParameterDict", lambda: Wired(
        lambda m, x: torch.tanh(x @ m.weights["first"]) @ m.weights["last"],
        weights=nn.ParameterDict({"first": torch.randn(5, 3), "last": torch.randn(3, 2)})), numbers(5)),
    params("complex parameters", lambda: Wired(
        lambda m, x: (x.to(torch.complex128) @ m.weight).abs(),
        weight=nn.Parameter(torch.randn(5, 2, dtype=torch.complex128))), numbers(5)),
    flow("activation checkpointing", lambda: Wired(
        lambda m, x: m.last(checkpoint(m.first, x, use_reentrant=False)),
        first=nn.Sequential(nn.Linear(5, 4), nn.Tanh()), last=nn.Linear(4, 2)), numbers(5),
        engine="loop", evaluation="looped"),
    flow("forward hook", hooked, numbers(5)),
    flow("branch on a member's values", lambda: Wired(branching, linear=nn.Linear(5, 2)), numbers(5),
         engine="loop", evaluation="looped"),
    flow("boolean mask of each member", lambda: Wired(masked, linear=nn.Linear(5, 2)), numbers(5),
         engine="loop", evaluation="looped"),
    flow(".item()", lambda: Wired(reading, linear=nn.Linear(5, 2)), numbers(5), engine="loop", evaluation="looped"),
    flow("autograd.Function", lambda: Wired(square, linear=nn.Linear(5, 2)), numbers(5)),
    flow("autograd.Function of the old style", lambda: Wired(
        old_square, linear=nn.Linear(5, 2)), numbers(5),
        engine="loop", evaluation="looped"),
    shape("dict inputs", lambda: Wired(
        lambda m, *, image, extra: m.head(torch.cat([torch.tanh(m.first(image)), extra], 1)),
        first=nn.Linear(5, 4), head=nn.Linear(6, 2)),
        lambda: ({"image": normal(5), "extra": normal(2, seed=3)}, normal(2, seed=2))),
    shape("tuple inputs", lambda: Wired(
        lambda m, x, y: torch.tanh(m.first(x)) * m.second(y), first=nn.Linear(5, 2), second=nn.Linear(3, 2)),
        lambda: ((normal(5), normal(3, seed=3)), normal(2, seed=2))),
    shape("tuple outputs", lambda: Wired(
        lambda m, x: (m.first(x), m.second(x)), first=nn.Linear(5, 2), second=nn.Linear(5, 2)), numbers(5),
        lambda outputs, targets: F.mse_loss(outputs[0] + outputs[1], targets)),
    shape("dict outputs and targets", lambda: Wired(
        lambda m, x: {"kind": m.kind(x), "size": m.size(x)}, kind=nn.Linear(5, 3), size=nn.Linear(5, 2)),
        lambda: (normal(5), {"kind": whole(3), "size": normal(2, seed=3)}), two_heads),
    real("ResNet block, BatchNorm2d", lambda: nn.Sequential(
        ResidualBlock(2, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), labels(*small), F.cross_entropy),
    real("depthwise-separable CNN", lambda: nn.Sequential(
        nn.Conv2d(2, 2, 3, groups=2, bias=False), nn.Conv2d(2, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU6(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 3)), labels(*small), F.cross_entropy,
        replaces="dropout"),
    real("LSTM forecaster", Forecaster, numbers(*steps)),
    real("transformer classifier", TextClassifier, tokens(), F.cross_entropy),
    real("transformer classifier, dropout", lambda: TextClassifier(0.2), tokens(), F.cross_entropy,
         replaces="dropout"),
    with_loss("CrossEntropy", F.cross_entropy, lambda: whole(3)),
    with_loss("CrossEntropy, label smoothing", partial(F.cross_entropy, label_smoothing=0.1), lambda: whole(3)),
    with_loss("CrossEntropy, class weights", partial(F.cross_entropy, weight=WEIGHTS), lambda: whole(3)),
    with_loss("CrossEntropy, ignore_index", partial(F.cross_entropy, ignore_index=2), lambda: whole(3)),
    with_loss("CrossEntropy, soft targets", F.cross_entropy, lambda: normal(3, seed=2).softmax(1)),
    with_loss("BCEWithLogits", F.binary_cross_entropy_with_logits, lambda: whole(2, 3).double()),
    with_loss("NLL", lambda o, t: F.nll_loss(o.log_softmax(1), t), lambda: whole(3)),
    with_loss("KLDiv", lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean"),
              lambda: normal(3, seed=2).softmax(1)),
    with_loss("Huber", F.huber_loss, lambda: normal(3, seed=2)),
    with_loss("SmoothL1", F.smooth_l1_loss, lambda: normal(3, seed=2)),
    with_loss("L1", F.l1_loss, lambda: normal(3, seed=2)),
    with_loss("PoissonNLL", F.poisson_nll_loss, lambda: whole(5, 3).double()),
    with_loss("MultiMargin", F.multi_margin_loss, lambda: whole(3)),
    with_loss("MultiLabelSoftMargin", F.multilabel_soft_margin_loss, lambda: whole(2, 3).double()),
    simple("losses", "GaussianNLL", lambda: Wired(
        lambda m, x: (m.mean(x), F.softplus(m.variance(x))), mean=nn.Linear(5, 2), variance=nn.Linear(5, 2)),
        numbers(5), gaussian, replaces="gaussian_nll_loss"),
    simple("losses", "CosineEmbedding", lambda: Wired(
        lambda m, x, y: (m.tower(x), m.tower(y)), tower=nn.Linear(5, 3)),
        lambda: ((normal(5), normal(5, seed=3)), 2 * whole(2) - 1), cosine),
    simple("losses", "TripletMargin", lambda: Wired(
        lambda m, a, p, n: (m.tower(a), m.tower(p), m.tower(n)), tower=nn.Linear(5, 3)),
        lambda: ((normal(5), normal(5, seed=3), normal(5, seed=4)), whole(2)), triplet),
    simple("losses", "CTC", lambda: nn.Linear(3, 4),
           lambda: (normal(5, 3), (whole(4, 2, low=1), torch.full((ROWS + HELD_OUT,), 5), whole(3, low=1))), ctc),
    refused("TorchScript", scripted, numbers(5)),
    refused("backward hook", with_backward_hook, numbers(5)),
    refused("hook on a parameter", with_parameter_hook, numbers(5)),
    refused("sparse gradients", lambda: nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True), nn.Linear(4, 3)), tokens()),
    refused("uninitialised lazy parameters", lambda: nn.LazyLinear(2), numbers(5)),
)  # fmt: skip
