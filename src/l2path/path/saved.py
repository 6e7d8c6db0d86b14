"""What a :class:`PathResult` consists of in a file, and back: all its data, and nothing of the module's code.

What was written stays readable: who changes the tree below raises ``SCHEMA``, and keeps reading the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, NoReturn

from torch import nn

from l2path.blocks import Block
from l2path.engine import Engine
from l2path.errors import ArgumentError
from l2path.files import refusal
from l2path.functional import Functional, Substitutes, functionalize
from l2path.path.evaluation import Metric, Validation
from l2path.path.outcome import Outcome, Selection, Uncertainty
from l2path.path.recorded import Recipe, Recorded, recipe_of
from l2path.path.saved_table import table_of, table_tree
from l2path.path.setup import device_of, functional_of, quiet
from l2path.penalty import Names
from l2path.trees import map_tensors
from l2path.types import Batch, Params, Tree

SCHEMA = 1
KIND = "PathResult"

Factory = nn.Module | Callable[[], nn.Module]


# --- to a file --------------------------------------------------------------------------------------------------------


def contents(result: Outcome) -> dict[str, Any]:
    """Return a result as a tree that :func:`l2path.files.write_file` takes."""
    fn = next(iter(result.functionals.values()))[0]
    val = result.select.validation
    greater = None if val is None else {name: metric.greater_is_better for name, metric in val.metrics.items()}
    return {
        "history": result.history,
        "params": result.params,
        "buffers": result.buffers,
        "live_params": result.live_params,
        "table": table_tree(result.table),
        "names": {
            "aliases": {name: list(own) for name, own in result.names.aliases.items()},
            "exempt": result.names.exempt,
            "frozen": result.names.frozen,
        },
        "module": {
            "unused": list(fn.unused),
            "renormalised": list(fn.renormalised),
            "substitutes": fn.substitutes is not None,
            "seeds": [_seed_tree(result, seed) for seed in result.functionals],
        },
        "status": list(result.status),
        "epochs_trained": list(result.epochs_trained),
        "epochs_kept": list(result.epochs_kept),
        "diverged_at": list(result.diverged_at),
        "complete": result.complete,
        "engine": _fields(result.engine),
        "eval_kind": result.eval_kind,
        "select": {
            "name": result.select.name,
            "greater_is_better": result.select.greater_is_better,
            "metrics": greater,  # None: there was no validation
        },
        "uncertainty": _fields(result.uncertainty),
    }


def _fields(config: Any) -> dict[str, Any]:
    return {f.name: getattr(config, f.name) for f in fields(config)}


def _seed_tree(result: Outcome, seed: int) -> dict[str, Any]:
    """Return what the members of one seed share, and what their ``state_dict`` is made of."""
    fn = result.functionals[seed][0]
    recipe = fn.recipe if isinstance(fn, Recorded) else _recipe(result, seed)
    return {"seed": seed, "frozen": fn.frozen, **_fields(recipe)}


def _recipe(result: Outcome, seed: int) -> Recipe:
    members = [k for k, s in enumerate(result.table.seeds) if s == seed]
    recipe = recipe_of(result.member(members[0]).module())
    free = [key for key, name in recipe.entries.items() if name is None]
    if not free:
        return recipe
    computed: dict[str, dict[int, Any]] = {key: {} for key in free}
    lost: dict[str, str] = {}
    for k in members:
        found = result.member(k).state_dict()
        for key in free:
            reason = refusal(found[key]) if key in found else "not every member has it"
            if reason is not None:
                lost[key] = reason
            else:
                computed[key][k] = found[key]
    return Recipe(recipe.entries, {key: v for key, v in computed.items() if key not in lost}, lost)


# --- from a file ------------------------------------------------------------------------------------------------------


def outcome_fields(tree: Mapping[str, Any], module: Factory | None) -> dict[str, Any]:
    """Return the fields of the result that :func:`contents` wrote down.

    Parameters
    ----------
    tree : dict
    module : nn.Module or callable, optional
        What the result was trained with; everything goes to its device then.

    Raises
    ------
    ArgumentError
        For a module that does not fit.
    """
    fns = _recorded(tree) if module is None else _functionals(tree, module)
    device = next(iter(fns.values())).device

    def placed(part: Tree) -> Tree:
        return map_tensors(lambda x: x.to(device), part)

    params, buffers = placed(tree["params"]), placed(tree["buffers"])
    # What was one tensor is one tensor again: the weights are those that training moved, and no averages.
    one = all(tree["params"].get(name) is value for name, value in tree["live_params"].items())
    live = params if one else placed(tree["live_params"])
    select, first = tree["select"], fns[tree["table"]["seeds"][0]]
    return {
        "history": tree["history"],
        "params": params,
        "buffers": buffers,
        "live_params": live,
        "table": table_of(tree["table"], placed),
        "names": Names(_one(live), first.aliases, tree["names"]["exempt"], first.frozen),
        "functionals": {seed: (fn, fn.evaluation()) for seed, fn in fns.items()},
        "status": tuple(tree["status"]),
        "epochs_trained": tuple(tree["epochs_trained"]),
        "epochs_kept": tuple(tree["epochs_kept"]),
        "diverged_at": tuple(tree["diverged_at"]),
        "complete": tree["complete"],
        "engine": _engine(tree["engine"]),
        "eval_kind": tree["eval_kind"],
        "select": Selection(select["name"], select["greater_is_better"], _validation(select["metrics"])),
        "uncertainty": Uncertainty(**tree["uncertainty"]),
    }


def _engine(tree: Mapping[str, Any]) -> Engine:
    """Return how members were executed; what another version says of it beyond this one repeats no bit here."""
    return Engine(**{f.name: tree[f.name] for f in fields(Engine) if f.name in tree})


def _one(stacked: Params) -> Params:
    """Return the parameters of one member, whose shapes and dtypes are those of all."""
    return {name: value[0] for name, value in stacked.items()}


def _recorded(tree: Mapping[str, Any]) -> dict[int, Functional]:
    """Return what is left of the module, by seed."""
    params, buffers = _one(tree["live_params"]), _one(tree["buffers"])
    aliases = {name: tuple(own) for name, own in tree["names"]["aliases"].items()}
    kept = tree["module"]
    return {
        own["seed"]: Recorded(
            params,
            buffers,
            own["frozen"],
            aliases,
            nn.Module(),
            unused=tuple(kept["unused"]),
            renormalised=tuple(kept["renormalised"]),
            substitutes=Substitutes() if kept["substitutes"] else None,
            recipe=Recipe(own["entries"], own["computed"], own["lost"]),
        )
        for own in kept["seeds"]
    }


def _functionals(tree: Mapping[str, Any], module: Factory) -> dict[int, Functional]:
    """Take the module apart as it was for training, by seed, with the parameters that were not trained."""
    kept = tree["module"]
    device = device_of(module)
    substitutes = Substitutes() if kept["substitutes"] else None
    fns: dict[int, Functional] = {}
    for own in kept["seeds"]:
        with quiet(device):
            fn = functionalize(module) if isinstance(module, nn.Module) else functional_of(module, own["seed"], device)
        fn = fn.freeze(list(kept["unused"])).with_substitutes(substitutes)
        _check_fit(fn, tree, own["frozen"])
        frozen = {name: now.clone().copy_(own["frozen"][name]) for name, now in fn.frozen.items()}
        fns[own["seed"]] = replace(fn, frozen=frozen)
    return fns


def _check_fit(fn: Functional, tree: Mapping[str, Any], frozen: Params) -> None:
    """Refuse a module whose tensors are not those of the file."""

    def described(*parts: tuple[Params, str]) -> dict[str, str]:
        return {n: f"{what} {list(t.shape)} {t.dtype}" for part, what in parts for n, t in part.items()}

    found = described((fn.params, "trainable"), (fn.frozen, "frozen"), (fn.buffers, "buffer"))
    wanted = described((_one(tree["live_params"]), "trainable"), (frozen, "frozen"), (_one(tree["buffers"]), "buffer"))
    odd = [name for name in (wanted | found) if found.get(name) != wanted.get(name)]
    if odd:
        differ = "; ".join(
            f"{name!r}: {found.get(name, 'missing')}, in the file {wanted.get(name, 'missing')}" for name in odd[:3]
        )
        more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ArgumentError(
            "module",
            got=f"a {type(fn.template).__name__} that does not fit the file ({differ}{more})",
            expected="the names, shapes, dtypes and requires_grad of the module that was trained",
            remedy="make it as it was made for training; load_result(path) without module= shows what the file holds",
        )


class _Nothing:
    """Validation data of a result that was loaded: a file holds neither data nor functions."""

    rows = batch_size = seed = None

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Say that there are none."""
        _gone()

    def blocks(self, epoch: int, length: Callable[[], int]) -> Iterator[Block]:
        """Say that there are none."""
        _gone()


def _gone(*_: Any) -> NoReturn:
    raise ArgumentError(
        "validation",
        got="a result that was loaded from a file",
        expected="the data and functions that it was scored with, which no file holds",
        remedy="read result.history, result.scores and result.uncertainty, or score result.predict(inputs)",
    )


def _validation(metrics: Mapping[str, bool] | None) -> Validation | None:
    """Return what stands for the validation data, by which the scores were had."""
    if metrics is None:
        return None
    return Validation(_Nothing(), _gone, {name: Metric(_gone, greater) for name, greater in metrics.items()})
