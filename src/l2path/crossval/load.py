"""``load_result``: what was saved, back."""

from __future__ import annotations

import os
from collections.abc import Callable

from torch import nn

from l2path.crossval.result import CVResult
from l2path.crossval.saved import CV_KIND, cv_fields, no_refit
from l2path.files import read_file
from l2path.path import PathResult
from l2path.path.saved import KIND, SCHEMA, outcome_fields


def load_result(
    path: str | os.PathLike[str], module: nn.Module | Callable[[], nn.Module] | None = None
) -> PathResult | CVResult:
    """Read what :meth:`PathResult.save` or :meth:`CVResult.save` has written.

    A file holds numbers and names, and no code. Without ``module`` everything works that needs none: the table, plots,
    history, scores and choices, ``params``, and each member's ``state_dict()``, which equals the original's. With it
    ``predict`` and ``member.module()`` work as before, too. A refit needs the data: it is trained anew.

    Parameters
    ----------
    path : str or path
    module : nn.Module or callable, optional
        What the result was trained with, on the device to go to (without it that is the CPU). Its weights do not
        matter; a callable is called once for each seed.

    Returns
    -------
    PathResult or CVResult
        What was saved.

    Raises
    ------
    ArgumentError
        For what is no such file, is damaged, or was written by a newer version; and for a module whose names, shapes or
        dtypes are others.

    Examples
    --------
    >>> import tempfile, torch, l2path
    >>> x = torch.linspace(-1, 1, 20).unsqueeze(1)
    >>> result = l2path.batch_train(
    ...     nn.Linear(1, 1), (x, 2 * x), loss_fn=nn.functional.mse_loss, optimizer=l2path.sgd(lr=0.1),
    ...     lambdas=[0.1, 0.0], epochs=3,
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result.save(f"{folder}/path.l2path")
    ...     loaded = load_result(f"{folder}/path.l2path", nn.Linear(1, 1))
    >>> torch.equal(loaded.predict(x), result.predict(x))
    True
    """
    kind, _, tree = read_file(path, {KIND: SCHEMA, CV_KIND: SCHEMA})
    if kind == KIND:
        return PathResult(**outcome_fields(tree, module))
    cv = CVResult(**cv_fields(tree, module), _prepare=no_refit)
    vars(cv)["_summary"] = tree["cvm"], tree["cvsd"]  # folds that counted by weights cannot be averaged anew
    return cv
