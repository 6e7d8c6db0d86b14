"""Models of Hugging Face's transformers, which take a dict and compute their own loss: tiny ones, from configs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import l2path
from tests.contract import MODES, by_hand, check_members, check_whole_run, outputs_and_loss, solo_runs
from tests.families import HELD_OUT, LAMBDAS, ROWS, SEED, Family, normal, seeded, train, whole
from tests.helpers import assert_trees_close

with pytest.MonkeyPatch.context() as patch:
    patch.setenv("HF_HUB_OFFLINE", "1")  # read when it is imported
    # Its types lack arguments that its configs take, hence Any.
    transformers: Any = importlib.import_module("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::l2path.BoundaryWarning")

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 12}
TEXT: dict[str, Any] = {"vocab_size": 20, "max_position_embeddings": 8}
WORDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gpt2(attention: str) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_inner": 12}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **WORDS, attn_implementation=attention))


def bert(attention: str) -> Any:
    config = transformers.BertConfig(**SMALL, **TEXT, num_labels=3, attn_implementation=attention)
    return transformers.BertForSequenceClassification(config)


def vit(attention: str) -> Any:
    config = transformers.ViTConfig(
        **SMALL, image_size=8, patch_size=4, num_labels=3, attn_implementation=attention,
        hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


def llama(attention: str) -> Any:
    config = transformers.LlamaConfig(
        **SMALL, **TEXT, **WORDS, num_key_value_heads=1, attention_dropout=0.1, attn_implementation=attention
    )
    return transformers.LlamaForCausalLM(config)


def with_biases(build: Callable[[], nn.Module]) -> nn.Module:
    """The module with biases that are not zero: those of keys have no gradient, and would be rounding alone."""
    module = build()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("bias"):
                p.normal_(std=0.1)
    return module


def padding() -> Tensor:
    """Rows of 3 to 6 tokens, padded on the right."""
    return (torch.arange(6) < (torch.arange(ROWS + HELD_OUT) % 4 + 3).unsqueeze(1)).long()


def language() -> dict[str, Tensor]:
    ids, mask = whole(20, 6, low=3), padding()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def sentences() -> dict[str, Tensor]:
    mask = padding()
    return {"input_ids": whole(20, 6, low=3) * mask, "attention_mask": mask, "labels": whole(3)}


def images() -> dict[str, Tensor]:
    return {"pixel_values": normal(3, 8, 8), "labels": whole(3)}


MODELS: dict[str, tuple[Callable[[str], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "GPT-2": (gpt2, language), "BERT": (bert, sentences), "ViT": (vit, images), "Llama": (llama, language),
}  # fmt: skip
CASES = {
    f"{name}, {attention}": Family(
        f"{name}, {attention}", "transformers", seeded(partial(with_biases, partial(build, attention))), data,
        l2path.model_loss(), engine="vmap", evaluation="batched",
        replaces="scaled_dot_product_attention" if (name, attention) == ("Llama", "sdpa") else "dropout",
    )
    for name, (build, data) in MODELS.items() for attention in ("eager", "sdpa")
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_every_member_equals_a_handwritten_loop(name: str, mode: str) -> None:
    check_members(CASES[name], mode)


@pytest.mark.parametrize("name", [name for name in CASES if "eager" in name])
def test_another_order_and_other_masks_are_noticed(name: str) -> None:
    # A dropout that did nothing would test nothing.
    expected = solo_runs(CASES[name])[1].module.state_dict()
    for other in ({"order_seed": SEED + 1}, {"mask_seed": SEED + 1}):
        wrong = by_hand(CASES[name], LAMBDAS[1], **other)
        with pytest.raises(AssertionError, match="relative difference"):
            assert_trees_close(wrong.module.state_dict(), expected, 1e-4)


# --- whole runs -------------------------------------------------------------------------------------------------------


def accuracy(outputs: Any, batch: dict[str, Tensor]) -> Tensor:
    """Of classes, or of tokens."""
    return accuracy_of(outputs.logits, batch["labels"])


@pytest.mark.parametrize("name", ["GPT-2, sdpa", "BERT, eager", "ViT, sdpa", "Llama, eager"])
def test_a_whole_run(name: str) -> None:
    family = CASES[name]
    result = check_whole_run(family, metrics={"accuracy": l2path.Metric(accuracy, greater_is_better=True)})
    # The mean over the tokens of all rows is no mean over rows of different lengths; that over classes is.
    if name.startswith(("GPT-2", "Llama")):
        assert result.uncertainty.standard_errors is None
        assert "not the mean over its rows" in (result.uncertainty.reason or "")
    else:
        with torch.no_grad():
            logits = result.best.module().eval()(**family.validation).logits
        rows = F.cross_entropy(logits, family.validation["labels"], reduction="none")
        assert result.uncertainty.standard_errors is not None
        own = result.uncertainty.standard_errors[result.best.index]
        assert_trees_close(own, rows.std() / HELD_OUT**0.5, 1e-9)
        assert_trees_close(
            result.history["val_accuracy"][-1, result.best.index], accuracy_of(logits, family.validation["labels"]), 0.0
        )


def accuracy_of(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).double().mean()


def loaded(rows: dict[str, Tensor]) -> DataLoader[Any]:
    """Batches of 4 rows as a tokenizer makes them: padded to the longest of each, in its own kind of mapping."""

    def collate(items: list[dict[str, Tensor]]) -> Any:
        stacked = {name: torch.stack([item[name] for item in items]) for name in items[0]}
        longest = int(stacked["attention_mask"].sum(1).max())
        return transformers.BatchEncoding({name: value[:, :longest] for name, value in stacked.items()})

    items: Any = [{name: value[i] for name, value in rows.items()} for i in range(len(rows["input_ids"]))]
    return DataLoader(items, 4, collate_fn=collate)


def test_a_loader_that_pads_each_batch_to_its_longest_row() -> None:
    family = CASES["GPT-2, eager"]

    def by_length(rows: dict[str, Tensor]) -> dict[str, Tensor]:
        order = rows["attention_mask"].sum(1).argsort()
        return {name: value[order] for name, value in rows.items()}

    data, held_out = by_length(family.train_data), by_length(family.validation)
    lengths = [batch["input_ids"].shape[1] for batch in loaded(data)]
    assert len(set(lengths)) > 1
    result = l2path.batch_train(
        family.make(), loaded(data), loss_fn=l2path.model_loss(), optimizer=l2path.sgd(lr=0.02), lambdas=[0.1],
        epochs=2, seed=SEED, validation=loaded(held_out),
    )  # fmt: skip
    assert result.engine.kind == "vmap"

    module = family.make()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, weight_decay=0.1)
    steps: Iterator[int] = iter(range(6))
    for _ in range(2):
        for batch in loaded(data):
            torch.manual_seed(l2path.step_seed(SEED, next(steps)))
            optimizer.zero_grad()
            module(**batch).loss.backward()
            optimizer.step()
    assert_trees_close(result.best.state_dict(), module.state_dict(), 1e-9)
    with torch.no_grad():
        losses = [(module.eval()(**batch).loss.double(), len(batch["labels"])) for batch in loaded(held_out)]
    mean = sum(loss * n for loss, n in losses) / sum(n for _, n in losses)
    assert_trees_close(result.best.score, mean, 1e-6)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["BERT, sdpa", "ViT, eager"])
def test_outputs_as_objects_in_an_ordinary_loss(name: str, engine: str) -> None:
    family = CASES[name]

    def pair(rows: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        return {k: v for k, v in rows.items() if k != "labels"}, rows["labels"]

    options: dict[str, Any] = {
        "optimizer": l2path.adam(lr=0.01), "lambdas": list(LAMBDAS), "epochs": 2, "batch_size": 4, "engine": engine
    }  # fmt: skip
    own = l2path.batch_train(
        family.make(), family.train_data, loss_fn=l2path.model_loss(), validation=family.validation, **options,
        metrics={"accuracy": accuracy},
    )  # fmt: skip
    ours = l2path.batch_train(
        family.make(), pair(family.train_data), loss_fn=lambda out, y: F.cross_entropy(out.logits, y),
        validation=pair(family.validation), metrics={"accuracy": lambda out, y: accuracy_of(out.logits, y)}, **options,
    )  # fmt: skip
    assert ours.engine.kind == own.engine.kind == engine
    assert_trees_close(ours.history, own.history, 1e-12)
    assert_trees_close(ours.params, own.params, 1e-12)
    assert_trees_close(ours.uncertainty.difference_errors, own.uncertainty.difference_errors, 1e-9)
    predicted = ours.predict(pair(family.validation)[0])
    assert type(predicted) is type(own.predict(family.validation))
    assert predicted.logits.shape == (len(LAMBDAS), HELD_OUT, 3)
    assert predicted.loss is None


@pytest.mark.parametrize("engine", ["vmap", "loop"])
@pytest.mark.parametrize("name", ["GPT-2, eager", "Llama, eager"])
def test_the_caches_of_language_models_are_left_out(name: str, engine: str) -> None:
    family = CASES[name]
    module = family.make()
    outputs, _ = outputs_and_loss(family, module, family.validation)
    assert outputs.past_key_values is not None
    result = train(family, module, engine=engine, epochs=1)
    predicted = result.predict(family.validation)
    assert predicted.past_key_values is None
    assert set(predicted) == {"loss", "logits"}


def test_a_tied_head_is_trained_and_penalised_once() -> None:
    family = CASES["GPT-2, eager"]
    module: Any = family.make()
    assert module.lm_head.weight is module.transformer.wte.weight
    result = train(family, module, lambdas={"lm_head.weight": [0.5]}, epochs=1, batch_size=ROWS)
    assert "lm_head.weight" not in result.params
    expected = 0.25 * module.transformer.wte.weight.detach().square().sum()
    assert_trees_close(result.history["penalty"][0, 0], expected, 1e-12)
    trained: Any = result.member(0).module()
    assert trained.lm_head.weight is trained.transformer.wte.weight


def test_the_step_and_the_check() -> None:
    family = CASES["BERT, sdpa"]
    batch = family.train_data
    report = l2path.check(family.make(), batch, l2path.model_loss())
    assert (report.training, report.evaluation, report.unused, report.changed) == ("vmap", "vmap", (), ())

    module, optimizer = family.make(), l2path.sgd(lr=0.1)
    step = l2path.make_train_step(module, l2path.model_loss(), optimizer)
    torch.manual_seed(0)
    state, metrics = step(l2path.init_state(module, optimizer), batch, 0.01)
    torch.manual_seed(0)
    loss = module(**batch).loss
    loss.backward()
    assert_trees_close(metrics.loss, loss, 1e-12)
    for name, p in module.named_parameters():
        assert p.grad is not None
        assert_trees_close(state.params[name], p - 0.1 * (p.grad + 0.01 * p), 1e-9, where=name)


def test_a_batch_without_labels() -> None:
    family = CASES["BERT, sdpa"]
    rows = {name: value for name, value in family.train_data.items() if name != "labels"}
    text = r"^loss_fn: got model_loss\(\) with a model that returns a SequenceClassifierOutput .* labels in the batch"
    with pytest.raises(l2path.ArgumentError, match=text):
        l2path.batch_train(
            family.make(), rows, loss_fn=l2path.model_loss(), optimizer=l2path.sgd(lr=0.1), lambdas=[0.1], epochs=1
        )
