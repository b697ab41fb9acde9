"""Links, rule numbers, the drawn house and file names in the documentation are those of the repository."""

from __future__ import annotations

import importlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

import bestie_pl
from bestie_pl.cli import main

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = REPOSITORY / "src/bestie_pl"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def anchor(heading: str) -> str:
    """What GitHub and the site make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(path: Path) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("http://", "https://")):
            continue
        file, _, part = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (part and part not in anchors(target)):
            wrong.append(link)
    assert wrong == [], f"{page.name} links to what is not there"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_it_names_exist(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(
        r"(?<![\w/.])((?:benchmarks|configs|results|notebooks|tools|experiments)/[\w/]+\.\w+)", text
    ):
        assert (REPOSITORY / path).exists(), path
    in_package = r"`((?:ops|models|metrics|data|modules|callbacks|cli|structures)(?:/\w+)*\.py)`"
    for path in re.findall(in_package, text):
        assert (SOURCES / path).exists(), path
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+_\w+)`", text):
        assert f"def {name}(" in tests, name


@pytest.mark.parametrize("page", ["use.md", "data.md"])
def test_printed_commands_are_understood(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "docs" / page).read_text(), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [words for line in lines if (words := shlex.split(line, comments=True))[:1] == ["bestie-pl"]]
    assert commands
    parsed = set()
    for _, verb, *arguments in commands:
        assert verb in main.VERBS | main.COMMANDS
        what = tuple(arguments)[: -2 if arguments[-2:] == ["--ckpt_path", "last"] else None]
        if verb in main.VERBS and what not in parsed:
            parsed.add(what)
            with pytest.raises(SystemExit) as stop:
                main.main([verb, *arguments, "--print_config"])
            assert stop.value.code in (0, None), (verb, *arguments)


def test_a_data_module_of_ones_own_trains() -> None:
    """The one that docs/use.md shows."""
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/use.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    sample = {
        "image": torch.rand(3, 64, 64),
        "tags": torch.tensor([False, True]),
        "semantic": (((y - 32) ** 2 + (x - 24) ** 2) < 200).byte() * 2,
        "points": [(32.0, 24.0, 1)],
    }
    data = names["MyData"]([{**sample, "name": str(number)} for number in range(3)])
    module = bestie_pl.BestieModule(
        2, backbone="tf_efficientnet_lite0", decoder="pyramid", backbone_weights=None, supervision="points"
    )
    trainer = pl.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/center_pseudo"] > 0


NUMBER = r"[1-9]\d?\.\d{1,2}"
BEFORE = r"(?:release(?:'s)?(?: behaviour| rules?)?|its rules|\()"
CITED = rf"{BEFORE} ?({NUMBER})((?:(?: to |, and |, | and ){NUMBER})*)"


def cited(source: str) -> set[str]:
    """Numbers of rules of the release in the docstrings and comments of a source text.

    ``release 4.1``, ``release 4.4 to 4.9``, or in brackets where the words before say whose rule it is.
    """
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
            text = re.sub(r"\s+", " ", token.string)
            for first, rest in re.findall(CITED, text) if "release" in text else []:
                found |= {first, *re.findall(NUMBER, rest)}
    return found


def test_every_rule_of_the_release_that_is_cited_is_written_down() -> None:
    rules = set(re.findall(rf"^\| ({NUMBER}) \|", (REPOSITORY / "docs/release-rules.md").read_text(), re.MULTILINE))
    sections = set(re.findall(r"^## (\d+) ", (REPOSITORY / "docs/release-rules.md").read_text(), re.MULTILINE))
    everywhere: set[str] = set()
    for path in sorted(SOURCES.rglob("*.py")):
        numbers = cited(path.read_text())
        assert numbers <= rules, (
            f"{path.relative_to(SOURCES)} cites {sorted(numbers - rules)}; see docs/release-rules.md"
        )
        everywhere |= numbers
        whole = set(re.findall(r"release(?:'s)? section (\d+)", path.read_text()))
        assert whole <= sections, path
    assert {"1.4", "12.5"} <= everywhere  # the search finds what there is


def test_a_wrong_rule_is_found() -> None:
    assert cited('"""Source: paper; release 4.31, and 5.2."""\n') == {"4.31", "5.2"}
    assert cited('"""As the release has it (77.7)."""\n# release 3.3 to 3.8\n') == {"77.7", "3.3", "3.8"}
    assert cited('x = "release 9.9"\n') == set()
    assert cited('"""Half a pixel (2.5)."""\n') == set()


def test_the_site_has_every_public_name_and_finds_its_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))
    site = importlib.import_module("tools.site")
    named = re.findall(r"^::: ([\w.]+)$", site.api_page(), re.MULTILINE)
    assert sorted(named) == sorted(f"bestie_pl.{home}.{name}" for name, home in bestie_pl._HOME.items())
    assert site.moved("[a](use.md) ![b](../results/b.png) [c](../README.md#limits)") == (
        "[a](use.md) ![b](results/b.png) [c](index.md#limits)"
    )
    pages = set(re.findall(r": ([\w-]+\.md)$", (REPOSITORY / "mkdocs.yml").read_text(), re.MULTILINE))
    written = {path.name for path in PAGES if path.name != "README.md"} | {"index.md", "api.md"}
    assert written - pages == set(), "add these to nav in mkdocs.yml"
    assert pages <= written, "in nav of mkdocs.yml and not there"


def test_the_site_is_built_without_a_wrong_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``make docs``, in a folder of its own."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    site = importlib.import_module("tools.site")
    monkeypatch.setattr(site, "PAGES", tmp_path / "build/pages")
    site.main()
    shutil.copy(REPOSITORY / "mkdocs.yml", tmp_path)
    for name in ("src", "tools"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    program = Path(sys.executable).with_name("zensical")
    if not program.exists():
        pytest.skip("zensical is not installed: pip install 'bestie-pl[docs]'")
    built = subprocess.run([program, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert "BestieModule" in (tmp_path / "build/site/api/index.html").read_text()


def test_the_house_is_drawn_as_it_stands() -> None:
    """Every module of the package stands in docs/structure.md once, with what it does, and nothing that is not there.

    ``python -m tools.tables`` draws it from the modules' docstrings.
    """
    (drawing,) = re.findall(r"```\n(src/bestie_pl/\n.*?)```", (REPOSITORY / "docs/structure.md").read_text(), re.DOTALL)
    folders: list[str] = []
    drawn: list[str] = []
    for line in drawing.splitlines()[1:]:
        found = re.match(r"((?:  )+)([\w/]+(?:\.\w+)?)  +(\S.*)$", line)
        assert found, f"expected `  name  what it does`, found {line!r}"
        depth, name = len(found[1]) // 2 - 1, found[2]
        folders[depth:] = [name.removesuffix("/")]
        if not name.endswith("/"):
            drawn.append("/".join(folders))
    real = {
        path.relative_to(SOURCES).as_posix()
        for path in SOURCES.rglob("*.py")
        if path.name != "__init__.py" or path.parent == SOURCES
    }
    assert sorted(real - set(drawn)) == [], "not in docs/structure.md: run python -m tools.tables"
    assert sorted(set(drawn) - real) == [], "in docs/structure.md and gone: run python -m tools.tables"
    assert sorted({name for name in drawn if drawn.count(name) > 1}) == [], "named twice in docs/structure.md"
