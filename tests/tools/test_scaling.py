"""What docs/scaling.md computes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from bestie_pl.models.bestie import BestieModel
from tools import scaling

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling.md").read_text()


def test_the_network_has_so_many_parameters() -> None:
    with torch.device("meta"):
        model = BestieModel(20, "hrnet_w48")
    assert sum(values.numel() for values in model.parameters()) == scaling.PARAMETERS


def test_the_papers_batch_has_the_papers_rate() -> None:
    head, *rows = scaling.training_table()[0]
    found = {(row["GPUs"], row["batch"]): row for row in (dict(zip(head, row, strict=True)) for row in rows)}
    assert float(found["8", "32"]["learning rate"]) == scaling.REFERENCE_LR
    assert float(found["8", "128"]["learning rate"]) == pytest.approx(2 * scaling.REFERENCE_LR)
    # the same images in all
    for (_, batch), row in found.items():
        assert int(batch) * int(row["steps"].replace(",", "")) == pytest.approx(
            scaling.IMAGES * scaling.EPOCHS, rel=0.05
        )


def test_only_what_is_shared_out_becomes_less() -> None:
    head, *rows = scaling.evaluation_table()[0]
    matching, scores = (
        [float(row[head.index(name)].removesuffix(" s")) for row in rows] for name in ("matching", "scores")
    )
    assert matching[0] > 7 * matching[1] > 49 * matching[2] and len(set(scores)) == 1


def test_rows_that_no_benchmark_has_are_an_error() -> None:
    with pytest.raises(KeyError):
        scaling.measured("step_cuda", "something else")


def test_the_page_shows_every_table_and_all_lines_ask_for_as_many_processes() -> None:
    assert re.findall(r"<!-- table: (\w+) -->", PAGE) == list(scaling.TABLES)
    lines = PAGE.replace("\\\n", "").splitlines()
    for line in (line for line in lines if line.startswith(("torchrun", "srun"))):
        nodes = re.findall(r"(?:--nnodes|--nodes|--trainer.num_nodes) (\d+)", line)
        each = re.findall(r"(?:--nproc-per-node|--ntasks-per-node|--gpus-per-node|--trainer.devices) (\d+)", line)
        assert len(nodes) == 2 and len(set(nodes)) == 1 and len(set(each)) == 1
