"""The table that every benchmark ends with, and its JSON: rows of {what, value, unit, bar, ok}."""

import json
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

Row = dict[str, Any]  # of `row`
Log = Callable[[str], None]

COMPARISONS = {"≥": operator.ge, "≤": operator.le}


def row(what: str, value: Any, unit: str = "", bar: str | None = None) -> Row:
    """One figure. `bar` is text like "≥ 0.8", or None where nothing is promised; a value of None was not measured."""
    ok = None
    if bar is not None and value is not None:
        sign, limit = bar.split()
        ok = COMPARISONS[sign](value, float(limit))
    return {"what": what, "value": value, "unit": unit, "bar": bar, "ok": ok}


def instruction_sets(kept_to: str = "") -> Row:
    """What of the CPU decides how fast products are: the vectors that torch uses, and what there is for short
    numbers; or the kind of CPU that both sides are kept to.
    """
    if kept_to:
        return row("instruction sets", f"{torch.backends.cpu.get_cpu_capability()}, kept to {kept_to}")
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        words = set()
    has = [name for name in ("avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16") if name in words]
    return row("instruction sets", ", ".join([torch.backends.cpu.get_cpu_capability(), *has]))


def show(rows: Sequence[Row], json_file: Path | str = "") -> None:
    """Print the rows, those that fall short and those not run included, and write them where a file is named."""

    def cell(value: Any) -> Any:
        return "not run" if value is None else f"{value:.3g}" if isinstance(value, float) else value

    verdict = {True: "yes", False: "NO", None: ""}
    print(
        tabulate(
            [[r["what"], cell(r["value"]), r["unit"], r["bar"] or "", verdict[r["ok"]]] for r in rows],
            headers=["what", "value", "unit", "bar", "holds"],
            tablefmt="github",
            disable_numparse=True,
        )
    )
    if json_file:
        Path(json_file).write_text(json.dumps(rows, indent=1, ensure_ascii=False))
