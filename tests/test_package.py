from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

import bestie_pl
from bestie_pl.cli import main as cli

SOURCES = Path(bestie_pl.__file__).parent

LOWEST = ("errors", "progress", "recipe", "structures")

ALLOWED = {
    "errors": set[str](),
    "progress": set[str](),
    "recipe": set[str](),
    "structures": {"errors"},
    "ops": {*LOWEST},
    "models": {*LOWEST, "ops"},
    "metrics": {*LOWEST, "ops"},
    "data": {*LOWEST, "ops"},
    "drawing": {*LOWEST, "ops", "data"},
    "prediction": {*LOWEST, "ops", "data", "drawing"},
    "modules": {*LOWEST, "ops", "models", "metrics", "data", "prediction"},
    "callbacks": {*LOWEST, "ops", "models", "metrics", "data", "drawing", "prediction", "modules"},
    "exported": {*LOWEST, "models", "data", "modules"},
    "predictor": {*LOWEST, "models", "prediction", "modules", "exported"},
}
"""What each part may import besides itself. Parts that are not named (the command line) may import everything."""

LIGHTNING = {"pytorch_lightning", "lightning"}
FILES = {"PIL", "csv", "glob", "json", "os", "pathlib", "pickle", "shutil", "tempfile", "yaml"}
NEVER = {"cv2", "lightning", "scipy"}
FORBIDDEN = {
    "structures": LIGHTNING | FILES | {"torchmetrics", "timm"},
    "ops": LIGHTNING | FILES | {"torchmetrics", "timm"},
    "models": LIGHTNING | {"PIL", "json", "yaml", "torchmetrics"},
    "metrics": LIGHTNING | FILES | {"timm"},
}


def _complaints(part: str, source: str) -> list[str]:
    """Imports and calls in a source text that its part of the package must not make."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                found.append(f"line {node.lineno}: relative import")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif (
            part in ("structures", "ops", "metrics")
            and isinstance(node, ast.Call)
            and ast.unparse(node.func) in ("open", "torch.load", "torch.save")
        ):
            found.append(f"line {node.lineno}: opens a file")
        for name in names:
            package, _, rest = name.partition(".")
            inner = rest.partition(".")[0].replace("__version__", "")
            if package in NEVER | FORBIDDEN.get(part, set()):
                found.append(f"line {node.lineno}: imports {package}")
            elif package == "bestie_pl" and inner and part in ALLOWED and inner not in ALLOWED[part] | {part}:
                found.append(f"line {node.lineno}: imports bestie_pl.{inner}")
    return found


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_version_is_the_installed_one() -> None:
    assert bestie_pl.__version__ == importlib.metadata.version("bestie-pl")


def test_import_is_light() -> None:
    assert _run("import sys, bestie_pl; print('torch' in sys.modules, 'numpy' in sys.modules)") == "False False\n"


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], []])
def test_help_and_version_are_light(arguments: list[str]) -> None:
    code = f"import sys; from bestie_pl.cli.main import main; print(main({arguments}), 'torch' in sys.modules)"
    assert _run(code).splitlines()[-1] == "0 False"


@pytest.mark.parametrize("name", bestie_pl.__all__)
def test_public_name_resolves(name: str) -> None:
    assert name in dir(bestie_pl)
    value = getattr(bestie_pl, name)
    assert name == "__version__" or value.__name__ == name


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((SOURCES / "__init__.py").read_text())
    declared = {
        alias.asname: f"{node.module}".removeprefix("bestie_pl.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and f"{node.module}".startswith("bestie_pl.")
        for alias in node.names
    }
    assert declared == bestie_pl._HOME


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bestie_pl' has no attribute 'BestyModule'"):
        _ = bestie_pl.BestyModule


def test_imports_point_one_way() -> None:
    complaints = [
        f"{path.relative_to(SOURCES)} {complaint}"
        for path in sorted(SOURCES.rglob("*.py"))
        for complaint in _complaints(path.relative_to(SOURCES).parts[0].removesuffix(".py"), path.read_text())
    ]
    assert complaints == []


@pytest.mark.parametrize(
    ("part", "source", "complaint"),
    [
        ("ops", "import pytorch_lightning as pl", "line 1: imports pytorch_lightning"),
        ("ops", "def f():\n    from pathlib import Path", "line 2: imports pathlib"),
        ("ops", "from bestie_pl import models", "line 1: imports bestie_pl.models"),
        ("ops", "import bestie_pl.metrics.voc", "line 1: imports bestie_pl.metrics"),
        ("ops", "open('x')", "line 1: opens a file"),
        ("structures", "from bestie_pl.ops.components import label_components", "line 1: imports bestie_pl.ops"),
        ("data", "from bestie_pl.models.bestie import BestieModel", "line 1: imports bestie_pl.models"),
        ("modules", "from bestie_pl.cli import main", "line 1: imports bestie_pl.cli"),
        ("modules", "from bestie_pl.callbacks.cues import CueWriter", "line 1: imports bestie_pl.callbacks"),
        ("modules", "from ..ops import peaks", "line 1: relative import"),
        ("cli", "import cv2", "line 1: imports cv2"),
    ],
)
def test_wrong_import_is_found(part: str, source: str, complaint: str) -> None:
    assert complaint in _complaints(part, source)


def test_shim_declares_what_torchvision_misses(tmp_path: Path) -> None:
    """A stand-in for a torchvision without compiled operators: the shim must let its fake kernels register, once."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import torch, torchvision.extension\n"
        "torch.library.register_fake('torchvision::nms')(lambda dets, scores, iou_threshold: dets)\n"
    )
    (package / "extension.py").write_text("def _has_ops():\n    return False\n")
    tools = SOURCES.parents[1] / "tools"
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(tools)!r}]; "
    # -I -S: without the environment's own .pth files, which may hold the shim already
    searched = f"sys.path += {sys.path!r}; "
    command = [sys.executable, "-I", "-S", "-c"]
    without = subprocess.run([*command, code + searched + "import torchvision"], capture_output=True, text=True)
    assert "operator torchvision::nms does not exist" in without.stderr
    with_it = subprocess.run(
        [*command, code + searched + "import torchvision_cpu, torchvision; print(torchvision.__file__, end='')"],
        capture_output=True,
        text=True,
    )
    assert with_it.stdout == str(package / "__init__.py"), with_it.stderr


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: bestie-pl")
    assert all(f"\n  {verb} " in text for verb in ("fit", "validate", "test", "predict"))
