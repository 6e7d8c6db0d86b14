"""Write docs/benchmarks.md and its plot from the results that are there: ``python -m tests.benchmarks._report``."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "benchmarks"
CONTENDERS = ("loops", "JAX", "JAX per core", "vmap", "compiled", "stock kernels", "auto")
CONVOLUTIONS = "JAX, convolutions as such"
Result: TypeAlias = dict[str, Any]  # a file of results

HEAD = """\
# Benchmarks

Written by `tests/benchmarks` from the results in `docs/benchmarks`; not edited by hand. `.venv/bin/nox -s bench`
measures everything anew, `nox -s bench -- mlp 8` one workload, and `nox -s bench -- --quick mlp` shows one in under a
minute. [Performance](performance.md) says what the figures mean.
"""
NOTHING = "\nNothing has been measured yet.\n"
RATES = """
## Rates

Model-steps (members x steps) per second while training goes on: the best of the rounds, in which all contenders take
turns, and their median in brackets. Loops are one process per core with one thread each, torch.optim's fused optimizer
and batches that are cut beforehand. JAX is `jit(scan(vmap(step)))` over an epoch of ready-made batches with donated
state, in one process with all cores, and as one pinned process per core with a part of the members each. The rest is
`batch_train` on the plain `nn.Module`, shuffling, history and checks included, with all cores: "stock kernels" is
compiled with torch's own kernels alone, "taken" what "auto" took.
"""
FIRST = """
## Seconds to the end of the first epoch

From the call to the end of the first epoch: compilation, with empty caches, and whatever else happens once. Importing
is not included, nor is the native kernels' build, which happens once on a machine.
"""
MEMORY = """
## Peak memory, MiB

What the processes of a contender take at most beyond what importing takes, added up. Compilers that run beside a
process in the meantime are given after a plus sign.
"""
JOBS = """
## Whole jobs, seconds

From the call to the result in fresh processes, everything but importing included. "loop" is one process with one
thread, "loops" one for each core. A tilde marks what was not run to its end: the time of a tenth of it, and the steady
rate for the rest.
"""
JOBBERS = ("loop", "loops", "JAX", "auto")
SCALE = """
## From one member to thousands

`batch_train` with `engine="auto"`: MLP 13-32-1, batch 32.
"""
SWITCHES = """
## Technique by technique

`engine="compiled"` with one technique after the other switched off: the rate, and relative to that of all.
"""
CROSSVAL = """
## Cross-validation

5 folds x 3 seeds x 32 lambdas, scored on the held-out fold after every epoch: `cross_validate` in one process, and a
loop over torch.optim for each member, with joblib over all cores, one thread each. Everything is included but importing
and the start of joblib's processes.
"""


def best(row: Mapping[str, Any]) -> float:
    """Return the best rate of the rounds."""
    return float(max(row["rates"]))


def median(row: Mapping[str, Any]) -> float:
    """Return the median rate."""
    return float(statistics.median(row["rates"]))


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def rate_cell(row: Mapping[str, Any]) -> str:
    """Return the best rate, and the median."""
    return f"{best(row):.0f} ({median(row):.0f})"


def memory_cell(row: Mapping[str, Any]) -> str:
    """Return the memory, and that of compilers."""
    return f"{row['memory']}" + (f" + {row['compilers']}" if row["compilers"] else "")


def job_cell(row: Mapping[str, Any]) -> str:
    """Return the seconds of a job."""
    return "-" if "seconds" not in row else f"{'~ ' if row.get('extrapolated') else ''}{row['seconds']:.1f}"


def cells(result: Result, cell: Callable[[Mapping[str, Any]], str]) -> list[str]:
    """Return a cell for each contender; "-" where there is none, or it failed."""
    rows = [result["rows"].get(label, {}) for label in CONTENDERS]
    return [cell(row) if row.get("rates") else "-" for row in rows]


def ratio(result: Result, ours: str, others: Iterable[str]) -> str:
    """Return how many times as fast one contender is as the fastest of others."""
    rows = result["rows"]
    known = [best(rows[o]) for o in others if rows.get(o, {}).get("rates")]
    return f"{best(rows[ours]) / max(known):.2f}" if known and rows.get(ours, {}).get("rates") else "-"


def rates(results: list[Result]) -> str:
    """Return the sections on rates, first epochs, memory and jobs."""
    head = ["workload", "K"]
    named = [[r["workload"], str(r["members"])] for r in results]
    jax = ("JAX", "JAX per core")
    text = RATES + "\n" + "".join(f"- `{name}`: {said}.\n" for name, said in names(results).items())
    text += table(
        [*head, *CONTENDERS, "taken", "auto / loops", "auto / JAX, the faster one"],
        (
            [
                *n,
                *cells(r, rate_cell),
                engine_of(r["rows"].get("auto", {})),
                ratio(r, "auto", ["loops"]),
                ratio(r, "auto", jax),
            ]
            for n, r in zip(named, results, strict=True)
        ),
    )
    for r in results:
        if r["rows"].get(CONVOLUTIONS, {}).get("rates"):
            text += (
                f"\nJAX's `{r['workload']}` is written as columns and a product. With convolutions as such, which vmap "
                f"turns into grouped ones, it comes to {best(r['rows'][CONVOLUTIONS]):.0f} at K = {r['members']}, in "
                f"one process: auto / JAX is {ratio(r, 'auto', [CONVOLUTIONS])} there.\n"
            )
    text += "\n![Rates relative to the loops](images/benchmarks.png)\n"
    failed = [
        f"- `{r['workload']}`, K = {r['members']}, {label}: {plain(row['error'])}\n"
        for r in results
        for label, row in r["rows"].items()
        if "error" in row
    ]
    text += "\nNot measured:\n\n" + "".join(failed) if failed else ""
    for intro, cell in ((FIRST, lambda row: f"{row['first']:.1f}"), (MEMORY, memory_cell)):
        text += intro + table(
            [*head, *CONTENDERS], ([*n, *cells(r, cell)] for n, r in zip(named, results, strict=True))
        )
    jobs = [
        [*n, f"{int(total):,}", *(job_cell(rows.get(label, {})) for label in labels), engine_of(rows.get("auto", {}))]
        for n, r in zip(named, results, strict=True)
        for total, rows in r.get("jobs", {}).items()
        for labels in [JOBBERS]
    ]
    return text + (JOBS + table([*head, "model-steps", *JOBBERS, "taken"], jobs) if jobs else "")


def plain(reason: str) -> str:
    """Return what went wrong as one line of Markdown, without the remedy."""
    return f"`{reason.split('; expected')[0][:200].replace('`', '')}`"


def names(results: list[Result]) -> dict[str, str]:
    """Return what the workloads are."""
    return {r["workload"]: r["said"] for r in results}


def engine_of(row: Mapping[str, Any]) -> str:
    """Return the kind of an engine from its repr."""
    return str(row.get("engine") or "'-'").split("'")[1]


def scale(result: Result) -> str:
    """Return the section on K."""
    rows = [
        [k, rate_cell(r), f"{r['first']:.1f}", memory_cell(r), engine_of(r)]
        for k, r in result["rows"].items()
        if "rates" in r
    ]
    return SCALE + table(["K", "rate", "first epoch, s", "memory, MiB", "taken"], rows)


def switches(results: list[Result]) -> str:
    """Return the section on techniques."""
    labels = list(results[0]["rows"])
    rows = []
    for label in labels:
        row = [label]
        for r in results:
            own, whole = r["rows"].get(label, {}), r["rows"]["all"]
            known = own.get("rates") and whole.get("rates")
            row.append(f"{rate_cell(own)}: {best(own) / best(whole):.2f}" if known else "-")
        rows.append(row)
    return SWITCHES + table(["", *(f"`{r['workload']}`, K = {r['members']}" for r in results)], rows)


def crossval(results: list[Result]) -> str:
    """Return the section on cross-validation."""
    rows = [
        [
            *(r["said"] if i == 0 else "", label, f"{row['seconds']:.1f}", f"{row['ratio']:.2f}"),
            *(f"{row['rate']:.0f}", f"{row['training']:.0f}", str(row["memory"]), engine_of(row)),
        ]
        for r in results
        for i, (label, row) in enumerate(r["rows"].items())
    ]
    head = ["model", "", "seconds", "loop / this", "model-steps per second", "in training", "memory, MiB", "taken"]
    return CROSSVAL + table(head, rows)


def made_with(results: list[Result]) -> str:
    """Return the section on machines and versions."""
    lines: dict[str, list[str]] = {}
    for r in results:
        m = r["machine"]
        versions = ", ".join(f"{name} {v}" for name, v in m["versions"].items())
        line = f"{m['processor']}, {m['cores']} cores ({m['system']}), {m['date']}; {versions}"
        lines.setdefault(line, []).append(f"{m['load']:.1f}")
    text = "\n## Made with\n\n"
    for line, loads in lines.items():
        text += f"- {line}; load average before each measurement {min(loads, key=float)} to {max(loads, key=float)}.\n"
    counts = sorted({(r["rounds"], r["seconds"]) for r in results if "seconds" in r})
    told = " or ".join(f"{n} rounds of at least {s:g} s for each contender" for n, s in counts)
    return text + (f"\nRates: {told}.\n" if told else "")


def plot(results: list[Result], path: Path) -> None:
    """Draw rates relative to the loops."""
    from matplotlib.figure import Figure

    shown = [r for r in results if r["rows"].get("loops", {}).get("rates")]
    figure = Figure(figsize=(9, 1.2 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    styles = {"JAX": "s", "JAX per core": "D", "vmap": "v", "compiled": "o", "stock kernels": ".", "auto": "x"}
    for color, (label, marker) in enumerate(styles.items()):
        points = [
            (best(r["rows"][label]) / best(r["rows"]["loops"]), i)
            for i, r in enumerate(shown)
            if r["rows"].get(label, {}).get("rates")
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=f"C{color}", label=label)
    axes.axvline(1.0, color="0.6", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rate relative to the loops")
    axes.set_yticks(range(len(shown)), [f"{r['workload']}, K = {r['members']}" for r in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def keep(folder: Path, stem: str, values: Mapping[str, Any]) -> None:
    """Write a file of results."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def kept(folder: Path, stem: str) -> dict[str, Any]:
    """Return what a file of results holds."""
    found: dict[str, Any] = json.loads((folder / f"{stem}.json").read_text(encoding="utf-8"))
    return found


def write(folder: Path = RESULTS) -> None:
    """Write the page beside a folder of results, with whatever is in it."""
    found = [kept(folder, path.stem) for path in sorted(folder.glob("*.json"))]
    kinds: dict[str, list[Result]] = {kind: [] for kind in ("rates", "scale", "switches", "crossval")}
    for result in found:
        kinds[result["kind"]].append(result)
    kinds["rates"].sort(key=lambda r: (r["order"], r["members"]))
    page = folder.parent / "benchmarks.md"
    text = HEAD if found else HEAD + NOTHING
    if kinds["rates"]:
        text += rates(kinds["rates"])
        plot(kinds["rates"], folder.parent / "images" / "benchmarks.png")
    text += "".join(scale(result) for result in kinds["scale"])
    text += switches(kinds["switches"]) if kinds["switches"] else ""
    text += crossval(kinds["crossval"]) if kinds["crossval"] else ""
    text += made_with(found) if found else ""
    page.write_text(text, encoding="utf-8")
    print(f"{page.name}: {len(found)} files of results", flush=True)


if __name__ == "__main__":
    write(Path(sys.argv[1]) if sys.argv[1:] else RESULTS)
