"""``bestie-pl report``: a page that needs no other file, every picture of which shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bestie_pl.cli.main import main
from bestie_pl.modules.weights import sha256

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOOK = """<script>addEventListener("load", () => {
  document.body.dataset.shown = [...document.images].map(i => i.complete && i.naturalWidth > 0 && i.offsetWidth > 0);
})</script></body>"""


class Page(HTMLParser):
    """Sources of images, and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: dict[str, str] = {}
        self.links: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "img":
            self.images[str(given["alt"])] = str(given["src"])
        self.links += [str(given[name]) for name in ("href", "src", "srcset") if name in given]

    def handle_data(self, data: str) -> None:
        self.text += data + "|"


@pytest.fixture(scope="module")
def reported(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run, compared with itself."""
    output = tmp_path_factory.mktemp("report") / "page.html"
    assert main(["report", str(trained_run), "--reference", str(trained_run), "--output", str(output)]) == 0
    return output


def test_the_page_holds_scores_pictures_and_settings(reported: Path, trained_run: Path) -> None:
    page = Page(reported.read_text())
    scores = json.loads((trained_run / "scores_test.json").read_text())
    curves = ["Losses", "Labels an image", "Mean weight of the labels", "Learning rate", "Seconds a step"]
    assert set(curves) <= set(page.images)
    # in this order, whatever the files are called
    sheets = [
        "Over the training: ",
        "Training crops, ",
        "Best test images",
        "Worst test images",
        "The first test images",
    ]
    shown = list(page.images)[-len(sheets) :]
    assert all(title.startswith(sheet) for title, sheet in zip(shown, sheets, strict=True))
    assert "Labels against the truth" in page.text and re.search(r"\|pseudo\|[\s|]*\d+", page.text)
    assert all(source.startswith("data:image/") for source in page.images.values())
    assert page.links == list(page.images.values()), "nothing is loaded from elsewhere"
    assert f"{100 * scores['scores']['test/miou']:.1f}|miou" in page.text
    assert "|share|" in page.text and "|100.0|" in page.text
    names = re.findall(r"test/ap50/(\w+)", " ".join(scores["scores"]))
    assert names and all(f"|{name}|" in page.text for name in names)
    assert "|image_scale|2" in page.text and scores["environment"]["torch"] in page.text
    assert "class_path: bestie_pl.ShapesDataModule" in page.text


def test_every_picture_shows(reported: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed, and pictures show in a browser only")
    copy = tmp_path / "page.html"
    copy.write_text(reported.read_text().replace("</body>", LOOK))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--virtual-time-budget=10000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    shown = re.findall(r'data-shown="([^"]*)"', done.stdout)
    assert shown, done.stderr[-2000:]
    assert shown[0].split(",") == ["true"] * len(Page(reported.read_text()).images)


def test_names_are_escaped_and_notes_are_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"test_oracle_tags/map50": 0.5, "test_oracle_tags/ap50/<b>": 0.25, "test_oracle_tags/ap50/c/d": 1.0}
    content = {"supervision": "full", "oracle": "tags", "ground_truth_used": ["the labels are true"], "scores": scores}
    (tmp_path / "scores_test.json").write_text(json.dumps(content))
    (tmp_path / "cue_report.json").write_text(
        json.dumps({"images": 3, "thresholds": [{"threshold": 0.5, "cues": 7, "precision": None, "each": [1]}]})
    )
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'report.html'}: ")
    text = (tmp_path / "report.html").read_text()
    assert "<b>" not in re.sub(r"<b>[\d.–]+</b>", "", text) and "&lt;b&gt;" in text
    page = Page(text)
    assert "Not weakly supervised: the labels are true." in page.text
    assert "The tags of the evaluated images were given" in page.text
    assert "|oracle_tags map50|" in page.text and "|c/d|" in page.text and "|0.5|" in page.text and "|7|" in page.text


def test_a_run_that_was_not_scored(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "pictures" / "training.png")
    assert main(["report", str(tmp_path)]) == 0
    (title,) = Page((tmp_path / "report.html").read_text()).images
    assert title.startswith("Training crops")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder: "),
        ({}, "holds no scores, no logs/version_*/metrics.csv and no pictures; give the folder of a run"),
        ({"scores_test.json": "{"}, "scores_test.json: is no JSON ("),
        (
            {"logs/version_0/metrics.csv": "step,train/loss\n1,many\n"},
            "metrics.csv: column train/loss holds 'many'; expected numbers",
        ),
    ],
)
def test_what_is_no_run(
    tmp_path: Path, files: dict[str, str] | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    for name, content in (files or {}).items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)
    if files is not None:
        run.mkdir(exist_ok=True)
    assert main(["report", str(run)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (run / "report.html").exists()


def test_figures_of_maps_and_scores_of_other_weights(tmp_path: Path) -> None:
    (tmp_path / "semantic_maps.json").write_text(
        json.dumps({"step": 3, "figures": {"tag_recall": 0.25, "mirror_agreement": None}, "miou": 0.625})
    )
    checkpoint = tmp_path / "logs/version_0/checkpoints/step=1.ckpt"
    checkpoint.parent.mkdir(parents=True)
    torch.save({}, checkpoint)
    (tmp_path / "logs/version_old").mkdir()
    for weights, noted in (("0" * 64, True), (sha256(checkpoint), False)):
        (tmp_path / "scores_test.json").write_text(json.dumps({"scores": {"test/map50": 0.5}, "sha256": weights}))
        assert main(["report", str(tmp_path)]) == 0
        text = Page((tmp_path / "report.html").read_text()).text
        assert "|tag recall|" in text and "|0.25|" in text and "|0.625|" in text and "mirror" not in text
        assert ("Scores are those of other weights" in text) is noted
