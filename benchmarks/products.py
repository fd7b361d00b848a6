"""One product of a decoding step by every way there is on a CPU to multiply by a rounded weight:
`python -m benchmarks.products`.

The shapes are those of the default model (its head, gate and up joined, down), with 2, 16 and 32 rows, on one thread;
milliseconds of the fastest of many calls. The ways are torch's packed products, our compiled one, and onnxruntime's
`MatMulNBits` and OpenVINO's compressed weights, each of these two in a process of its own with an environment of its
own. They run in turn, so that all see the same machine. All get the same weights and rows, and the error of each is
its distance to the exact product, as a share of that product's length: for two rows of the smallest shape.
"""

import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from benchmarks import peer, report
from benchmarks.peers.products import fastest
from benchmarks.report import Log, Row
from playground.decoding.number_formats import BFloat16Weight, Float32Weight, Int4Weight, Int8Weight
from playground.decoding.w8a16 import TiledInt8Weight
from playground.settings import Settings, SettingsError, read

SHAPES = ((49152, 576), (3072, 576), (576, 1536))  # outputs, inputs
ROWS = (2, 16, 32)
SECONDS = 0.5  # that each product is repeated for, at least CALLS times
CALLS = 5
OURS = "w8a16"
WAYS = {
    OURS: TiledInt8Weight,
    "torch int8": Int8Weight,
    "torch int4": Int4Weight,
    "torch bf16": BFloat16Weight,
    "torch fp32": Float32Weight,
}
PEERS = {
    "onnxruntime": ["onnxruntime==1.32.0", "onnx==1.23.2"],
    "openvino": ["openvino==2026.4.1"],
}


class ProductsSettings(Settings):
    """Products by rounded weights, by every way there is on a CPU."""

    quick: bool = False
    """The smallest shape alone, and no repeats."""
    json_file: str = Field("", alias="json")
    """File to write the rows to."""
    repeats: int = Field(2, ge=1)
    """How often all ways run in turn."""


def example(outputs: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
    """A weight (outputs, inputs) and max(ROWS) rows of activations, a few of which are far larger than the others, as
    in a model.
    """
    rng = np.random.default_rng([outputs, inputs])
    weight = rng.standard_normal((outputs, inputs), dtype=np.float32) / np.sqrt(np.float32(inputs))
    x = rng.standard_normal((max(ROWS), inputs), dtype=np.float32)
    x[:, :: inputs // 8] *= 20
    return weight, x


def error(y: np.ndarray, weight: np.ndarray, x: np.ndarray) -> float:
    """The distance of y to the exact product, as a share of its length."""
    exact = x.astype(np.float64) @ weight.astype(np.float64).T
    return float(np.linalg.norm(y - exact) / np.linalg.norm(exact))


def ours(shapes: list[list[int]], seconds: float) -> dict[str, Any]:
    """{way: {"milliseconds": {"OxI, rows": number}, "error": number}} of torch and of the compiled product."""
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, pack in WAYS.items():
            found[name] = {"milliseconds": {}}
            for outputs, inputs in shapes:
                weight, x = example(outputs, inputs)
                packed = pack(torch.from_numpy(weight))
                for rows in ROWS:
                    some = torch.from_numpy(x[:rows]).to(packed.dtype)
                    place = f"{outputs} × {inputs}, {rows}"
                    found[name]["milliseconds"][place] = fastest(partial(packed, some), seconds, CALLS)
                y = packed(torch.from_numpy(x[:2]).to(packed.dtype)).float().numpy()
                found[name]["error"] = error(y, weight, x[:2])
    return found


def of_peer(settings: ProductsSettings, name: str, shapes: list[list[int]], seconds: float, log: Log) -> dict[str, Any]:
    """The same of a peer."""
    interpreter = peer.python(settings, name, PEERS[name], log)
    script = peer.ROOT / "benchmarks" / "peers" / "products.py"
    with tempfile.TemporaryDirectory() as folder:
        for outputs, inputs in shapes:
            weight, x = example(outputs, inputs)
            np.savez(Path(folder) / f"{outputs}x{inputs}.npz", weight=weight, x=x)
        job = {"library": name, "folder": folder, "shapes": shapes, "rows": ROWS, "seconds": seconds, "calls": CALLS}
        said = peer.run_job([interpreter, script], job, threads=1)
        for way in said.values():
            outputs, inputs = shapes[-1]
            weight, x = example(outputs, inputs)
            way["error"] = error(np.array(way.pop("y")), weight, x[:2])
    return said


def run(settings: ProductsSettings, log: Log = print) -> list[Row]:
    """The rows of all ways."""
    torch.set_num_threads(1)
    shapes = [list(shape) for shape in (SHAPES[-1:] if settings.quick else SHAPES)]
    seconds = 0.05 if settings.quick else SECONDS
    found: dict[str, Any] = {}
    for _ in range(1 if settings.quick else settings.repeats):
        for part in (ours(shapes, seconds), *(of_peer(settings, name, shapes, seconds, log) for name in PEERS)):
            for way, figures in part.items():
                if way in found:
                    before = found[way]["milliseconds"]
                    figures["milliseconds"] = {k: min(v, before[k]) for k, v in figures["milliseconds"].items()}
                found[way] = figures
                log(f"{way}: {json.dumps(figures)}")
    rows = [report.instruction_sets()]
    for way, figures in found.items():
        rows += [report.row(f"{way}: {place} rows", ms, "ms") for place, ms in figures["milliseconds"].items()]
        rows.append(report.row(f"{way}: error of a product", figures["error"]))
    for place, ms in found[OURS]["milliseconds"].items():
        others = {way: found[way]["milliseconds"][place] for way in found if way != OURS}
        best = min(others, key=others.__getitem__)
        what = f"{place} rows: time of the fastest other ({best}) to {OURS}'s"
        rows.append(report.row(what, others[best] / ms, "×"))
    return rows


def main(argv: list[str] | None = None) -> None:
    try:
        settings = read(argv, ProductsSettings, "python -m benchmarks.products")
        report.show(run(settings), settings.json_file)
    except (SettingsError, peer.SideFailed) as failed:
        sys.exit(str(failed))


if __name__ == "__main__":
    main()
