"""Run benchmarks by name, print their tables, store them: ``python -m benchmarks refinement step --device cpu``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks import evaluation, inference, pipeline, refinement, scale, stages, step, throughput
from benchmarks.measure import Row, Settings, describe_machine
from bestie_pl.data.files import write_json

BENCHMARKS: dict[str, Callable[[Settings], list[Row]]] = {
    "refinement": refinement.run,
    "step": step.run,
    "throughput": throughput.run,
    "waits": step.run_waits,
    "memory": step.run_memory,
    "pipeline": pipeline.run,
    "scale": scale.run,
    "inference": inference.run,
    "stages": stages.run,
    "evaluation": inference.run_evaluation,
    "scores": evaluation.run,
    "growth": refinement.run_growth,
}

ON_A_GPU: dict[str, Callable[[Settings], list[Row]]] = {
    "compiled": throughput.run_compiled,
    "graphed": throughput.run_graphed,
    "batches": throughput.run_batches,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(BENCHMARKS)}; all if omitted")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of torch on the CPU")
    parser.add_argument("--quick", action="store_true", help="small inputs: does it run at all?")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(arguments)
    benchmarks = BENCHMARKS | (ON_A_GPU if options.device == "cuda" else {})
    if unknown := set(options.names) - benchmarks.keys():
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(benchmarks)}")
    settings = Settings(options.device, options.quick, options.threads)
    torch.set_num_threads(options.threads)
    command = " ".join(["python -m benchmarks", *(sys.argv[1:] if arguments is None else arguments)])
    for name in options.names or benchmarks:
        start = time.perf_counter()
        rows = benchmarks[name](settings)
        duration = time.perf_counter() - start
        print(f"\n{name} ({settings.device}, {duration:.0f} s)")
        for row in rows:
            print(_line(row))
        store(options.results / f"{name}_{settings.device}.json", rows, settings, command, duration)


def _line(row: Row) -> str:
    bar = ""
    if row.bar is not None:
        bar = f"  {'met' if row.met else 'MISSED'}: bar {'<=' if row.at_most else '>='} {row.bar:g}, limit {row.limit}"
    why = f"  [{row.limited_by}]" if row.limited_by else ""
    why += f"  next: {row.next_step}" if row.next_step else ""
    return f"  {row.name:<75} {row.value:>10.4g} {row.unit:<12}{bar}{why}"


def store(path: Path, rows: Sequence[Row], settings: Settings, command: str, duration: float) -> None:
    """Write a result file, whole or not at all."""
    content = {
        "command": command,
        "machine": describe_machine(settings),
        "seconds": round(duration, 1),
        "rows": [
            {key: value for key, value in {**vars(row), "met": row.met}.items() if value not in (None, "")}
            for row in rows
        ],
    }
    write_json(path, content)


if __name__ == "__main__":
    main()
