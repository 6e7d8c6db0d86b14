"""What does AdamW's decay buy a small transformer? It says in which of eight languages a short text is written.

The texts are the messages of the web framework Django, which ships with its translations. The decay is chosen by the
accuracy on validation messages; test messages then say what it bought over none, and how sure that is. Needs Django.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import django
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l2path

LANGUAGES = ("da", "de", "es", "fr", "it", "nl", "pt", "sv")
SEEDS, LENGTH, WIDTH = (0, 1, 2), 24, 32


def load() -> tuple[int, list[tuple[Tensor, Tensor]]]:
    """The size of the vocabulary, and tokens and languages for training, validation and test."""
    rows = []  # (English original, trigrams, language)
    for label, language in enumerate(LANGUAGES):
        texts: dict[str, str] = {}
        for path in sorted(Path(django.__file__).parent.glob(f"**/locale/{language}/LC_MESSAGES/django.po")):
            texts.update(re.findall(r'^msgid "(.+)"\nmsgstr "(.{10,})"$', path.read_text("utf-8"), re.MULTILINE))
        for original, text in texts.items():
            rows.append((original, [f" {text} "[i : i + 3].lower() for i in range(min(len(text), LENGTH))], label))

    # Few messages for training, and none in two parts, be it in different languages.
    originals = sorted({original for original, _, _ in rows})
    order = torch.randperm(len(originals), generator=torch.Generator().manual_seed(0)).tolist()
    parts = [{originals[i] for i in part} for part in (order[:150], order[150:250], order[250:])]
    counts = Counter(token for original, tokens, _ in rows if original in parts[0] for token in tokens)
    index = {token: i for i, token in enumerate(sorted(t for t in counts if counts[t] > 1), start=2)}

    def tensors(part: set[str]) -> tuple[Tensor, Tensor]:  # token 0 is padding, 1 stands for rare ones
        ids = [[index.get(t, 1) for t in tokens] for original, tokens, _ in rows if original in part]
        padded = [row + [0] * (LENGTH - len(row)) for row in ids]
        return torch.tensor(padded), torch.tensor([label for original, _, label in rows if original in part])

    return len(index) + 2, [tensors(part) for part in parts]


class Classifier(nn.Module):
    """Embeddings of tokens and positions, one encoder layer, the mean over what is no padding, a linear head."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, WIDTH, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(WIDTH, nhead=4, dim_feedforward=64, dropout=0.1, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers=1, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(LANGUAGES))

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        states = self.encoder(self.tokens(tokens) + self.positions, src_key_padding_mask=padding)
        mean = states.masked_fill(padding[..., None], 0.0).sum(1) / (~padding).sum(1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) == targets).float().mean()


def main() -> None:
    vocabulary, (train, validation, (x, y)) = load()
    result = l2path.batch_train(
        lambda: Classifier(vocabulary),
        train,
        loss_fn=F.cross_entropy,
        optimizer=l2path.adamw(lr=3e-3),
        sweep={"decay": l2path.weights_only(l2path.lambda_grid(0.3, 30.0, 5, zero=True))},
        epochs=12,
        batch_size=64,
        seeds=SEEDS,
        validation=validation,
        metrics={"accuracy": l2path.Metric(accuracy, greater_is_better=True)},
        select="accuracy",
    )
    print(result)
    hits = (result.predict(x).argmax(2) == y).double()  # [K, rows]
    decays, chosen = torch.tensor(result.hyper["decay"]), result.best.hyper["decay"]
    best, none = hits[decays == chosen], hits[decays == 0]  # [seeds, rows]
    gain, by_seed = (best - none).mean(0), ", ".join(f"{d:+.3f}" for d in (best - none).mean(1).tolist())
    print(
        f"\ntest accuracy {best.mean():.3f} with decay {chosen:.4g}, {none.mean():.3f} with none: "
        f"{gain.mean():+.3f} ± {gain.std() / len(gain) ** 0.5:.3f} (paired, {len(gain)} test rows; by seed {by_seed})"
    )


if __name__ == "__main__":
    main()
