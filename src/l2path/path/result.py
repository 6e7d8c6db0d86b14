"""What ``batch_train`` returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from l2path.batches import batch_rows
from l2path.data import DataStream, Place, Source, make_source
from l2path.engine import EvalKind
from l2path.errors import ArgumentError
from l2path.files import write_file
from l2path.functional import Functional, forked_rng, vmap_hints_silenced
from l2path.losses import FullLoss
from l2path.order import step_seed
from l2path.path.driver import Driver
from l2path.path.evaluation import concatenate, forward
from l2path.path.figures import draw, path_view
from l2path.path.frame import history_frame, member_frame
from l2path.path.members import Members
from l2path.path.outcome import Outcome, Selection, Uncertainty
from l2path.path.recorded import Recorded
from l2path.path.report import report
from l2path.path.rows import chunk_rows
from l2path.path.saved import KIND, SCHEMA, contents
from l2path.path.selfcheck import or_looped
from l2path.penalty import Names
from l2path.scores import FloatArray, standard_error
from l2path.training import TrainState
from l2path.trees import map_tensors, tensor_leaves, tree_map
from l2path.types import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

ROW_NUMBERS = 50_000_000  # row scores kept for standard errors: 400 MB


@dataclass(frozen=True, repr=False, eq=False)
class PathResult(Outcome):
    """K trained members and the choice between them; ``print(result)`` shows the table.

    Attributes
    ----------
    history : dict of str to Tensor, ``[epochs, K]`` float64
        "loss", "penalty" and "objective" (row-weighted means over each epoch's steps, before their updates), "val_loss"
        and "val_<metric>" (at the end of each epoch). NaN from a member's divergence or stop on.
    params : dict of str to Tensor, ``[K, ...]``
        Weights after training; a diverged member keeps its last finite state. With :func:`ema` they are the averaged
        ones, as in validation, predictions and members.
    buffers : dict of str to Tensor, ``[K, ...]``
        Buffers after training.
    live_params : dict of str to Tensor, ``[K, ...]``
        The weights that training moved, whose loss and penalty the history holds; without :func:`ema` the same as
        ``params``.
    table : Members
        The flat table of members and its axes.
    status : tuple of str, [K]
        "trained", "stopped", "eliminated" or "diverged".
    epochs_trained, epochs_kept : tuple of int, [K]
        Epochs trained, and the epoch whose weights and score are kept: another one with :class:`EarlyStopping`.
    diverged_at : tuple, [K]
        The step at which a member diverged, or None.
    complete : bool
        False after an interrupt.
    engine : Engine
        How members were executed; pass it to ``batch_train`` to repeat the run.
    select : Selection
        The score that decides.
    uncertainty : Uncertainty
        How sure the choice is.
    """

    def predict(self, inputs: Any, members: int | Sequence[int] | None = None, *, batch_size: int = 1024) -> Tree:
        """Return outputs in eval mode.

        Parameters
        ----------
        inputs : Tensor, array, tuple or dict of these
            ``[B, ...]``; a tuple becomes positional arguments, a dict keyword arguments.
        members : int or sequence of int, optional
            Which members, in this order; all of them by default.
        batch_size : int
            Rows at a time.

        Returns
        -------
        Tensor, or a tree of them
            ``[K, B, ...]``.

        Raises
        ------
        ArgumentError
            For inputs without rows, with NaN, or of lengths that differ, for members out of range, and after loading
            without the module.
        """
        wanted = range(len(self)) if members is None else np.atleast_1d(np.asarray(members)).tolist()
        chosen = [self._check_index(k) for k in wanted]
        if not chosen:
            raise ArgumentError("members", got="none", expected="at least one", remedy="leave members out for all")
        fn = self.functionals[self.table.seeds[chosen[0]]][0]
        if isinstance(fn, Recorded):
            fn.missing("predictions")
        source = make_source(
            inputs, argument="inputs", batch_size=batch_size, seed=None, place=Place(fn.device, fn.dtype)
        )
        parts: list[tuple[list[int], Tree]] = []
        with forked_rng(fn.device), torch.no_grad(), vmap_hints_silenced():
            for rows, state, evaluation, seed in self._chunks(chosen):
                call = partial(_outputs, source, state, seed)
                parts.append((rows, or_looped(self.eval_kind, evaluation, call, stacklevel=4)[1]))
        order = torch.tensor([row for rows, _ in parts for row in rows]).argsort()
        return map_tensors(lambda *x: torch.cat(x)[order.to(x[0].device)], *(part for _, part in parts))

    def _chunks(self, chosen: Sequence[int]) -> list[tuple[list[int], TrainState, Functional, int]]:
        """Split members by seed and into chunks: positions in ``chosen``, state, how to evaluate them, seed."""
        out = []
        for seed in dict.fromkeys(self.table.seeds[k] for k in chosen):
            own = [row for row, k in enumerate(chosen) if self.table.seeds[k] == seed]
            for start in range(0, len(own), self.engine.member_chunk):
                rows = own[start : start + self.engine.member_chunk]
                index = torch.tensor([chosen[row] for row in rows])
                params, buffers = tree_map(lambda x: x[index.to(x.device)], (self.params, self.buffers))  # noqa: B023
                out.append((rows, TrainState(params, buffers, (), index), self.functionals[seed][1], seed))
        return out

    def plot(self, kind: str = "overview", *, ax: Axes | None = None, parameter: str | None = None) -> Figure:
        """Draw the result; 0 stands beside a logarithmic axis, and several seeds are averaged.

        Parameters
        ----------
        kind : str
            - "overview": the next one (of two axes the heat map), "norms" and "curves" beside each other;
            - "validation": the score over the path with its standard errors, and the choice;
            - "heatmap": the score over two axes (of more: lambda and the first other one, best over the rest);
            - "norms": the Euclidean norm of each parameter over the path;
            - "coefficients": single numbers of the parameters over the path, the 40 largest where there are more;
            - "shrinkage": norms relative to those at the weakest lambda;
            - "curves": the score (without validation the training loss) over the epochs.

            Of several axes the last four show the path at the best values of the others.
        ax : matplotlib.axes.Axes, optional
            What to draw one panel into; a new figure by default. Legends and colour bars find their place in figures
            with ``layout="constrained"``.
        parameter : str, optional
            Name or glob of the parameters that "norms", "coefficients" and "shrinkage" show.

        Returns
        -------
        matplotlib.figure.Figure
            The new one, or that of ``ax``.

        Raises
        ------
        MissingExtraError
            Without matplotlib (the extra ``plot``).
        ArgumentError
            For a kind that there is not or that this result cannot have, and for arguments that do not fit it.
        """
        return draw(path_view(self), kind, ax, parameter)

    def to_dataframe(self, *, history: bool = False) -> DataFrame:
        """Return the members as a pandas DataFrame, one row for each, or for each epoch that each of them trained.

        Parameters
        ----------
        history : bool
            False: a row for each member, by its number. True: a row for each epoch and member.

        Returns
        -------
        pandas.DataFrame
            Of each member "fold", "seed", "point", the swept hyperparameters and "lambda" (or "lambda[<pattern>]" for
            each pattern; text where members trained with specs of several kinds). Then

            - by member: "score", by which to rank (NaN for members that diverged or were eliminated); the history at
              the epoch whose weights are kept (NaN for members that diverged); "epochs_trained", "epochs_kept",
              "status", "diverged_at"; and where there are any "standard_error", and "difference" from the best
              member's score with its paired "difference_error";
            - by epoch: the history, in the columns "epoch", "member" and those of :attr:`history`.

        Raises
        ------
        MissingExtraError
            Without pandas (the extra ``pandas``).
        """
        return history_frame(self) if history else member_frame(self)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything but the module's code to one file, for :func:`load_result`.

        The file is a zip of NumPy arrays and a JSON: no pickle, readable anywhere. What is at ``path`` already is
        replaced when the new file is complete.

        Parameters
        ----------
        path : str or path
            In a directory that exists; nothing is appended to the name.

        Raises
        ------
        ArgumentError
            For a directory that does not exist.
        """
        write_file(path, KIND, SCHEMA, contents(self))

    def __str__(self) -> str:
        return report(self).text()

    def _repr_html_(self) -> str:
        return report(self).html()

    def __repr__(self) -> str:
        chosen = ""
        if self.chosen is not None:
            chosen = f", best={self.best!r}"
        state = "" if self.complete else ", incomplete"
        return f"PathResult({len(self)} members{chosen}{state})"


def _outputs(source: Source, state: TrainState, seed: int, kind: EvalKind, fn: Functional) -> Tree:
    """Return the outputs ``[C, B, ...]`` of a chunk on all batches."""
    outputs, sizes = [], []
    for step, x in enumerate(DataStream(source, 0)):
        outputs.append(forward(kind, fn, state, x, step_seed(seed, step)))
        sizes.append(batch_rows(x))
    return concatenate(outputs, sizes, member_axis=True)


def finish(driver: Driver, table: Members, names: Names, select: Selection, *, complete: bool) -> PathResult:
    """Assemble the result of a run, with its standard errors."""
    weights = driver.roster.gather()
    record = driver.record
    result = PathResult(
        history=driver.record.history(),
        params=weights.params,
        buffers=weights.buffers,
        live_params=weights.params if weights.live is None else weights.live,
        table=table,
        names=names,
        functionals={g.seed: (g.fn, g.eval_fn) for g in driver.groups},
        status=tuple(record.status),
        epochs_trained=tuple(record.epochs),
        epochs_kept=driver.roster.epochs_kept(),
        diverged_at=tuple(record.diverged_at),
        complete=complete,
        engine=driver.engine,
        eval_kind=driver.scorer.kind,
        select=select,
    )
    return with_uncertainty(result)


def with_uncertainty(result: PathResult) -> PathResult:
    """Return a result with the standard errors of its scores."""
    if result.chosen is None or len(set(result.table.folds)) > 1:  # what to make of several folds is told elsewhere
        return result
    try:
        sure = uncertainty(result)
    except Exception as error:  # the members are trained: nothing that is asked of them afterwards may lose them
        sure = Uncertainty(reason=f"{type(error).__name__}: {error}")
    return replace(result, uncertainty=sure)


def uncertainty(result: PathResult) -> Uncertainty:
    """Return the standard errors of the scores and, paired, of their differences to the best member's."""
    val, name = result.select.validation, result.select.name
    if val is None:
        return Uncertainty(reason="there is no validation data")
    if isinstance(val.loss_fn, FullLoss):
        return Uncertainty(reason="a full_loss has no score of single rows")
    rows: FloatArray | None = None
    with forked_rng(next(tensor_leaves(result.params)).device):
        for index, state, evaluation, seed in result._chunks(range(len(result))):
            whole = result.scores[index]
            _, (found, reason) = or_looped(
                result.eval_kind,
                evaluation,
                lambda kind, fn: chunk_rows(kind, fn, state, val, name, seed, whole),  # noqa: B023
            )
            if found is None:
                return Uncertainty(reason=reason)
            if found.shape[1] * len(result) > ROW_NUMBERS:
                return Uncertainty(reason=f"{len(result)} members x {found.shape[1]} rows are too many to keep")
            rows = np.full((len(result), found.shape[1]), np.nan) if rows is None else rows
            rows[index] = found
    if rows is None or rows.shape[1] < 2:
        return Uncertainty(reason="one validation row has no standard error")
    rows[~np.isfinite(result.scores)] = np.nan
    offset = rows - rows[result.best.index]
    errors, paired = standard_error(rows), standard_error(offset)
    return Uncertainty(torch.from_numpy(errors), torch.from_numpy(offset.mean(1)), torch.from_numpy(paired))
