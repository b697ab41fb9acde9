"""What the README says is what the repository holds."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
README = (REPOSITORY / "README.md").read_text()


def test_tables_show_the_result_files() -> None:
    check = [sys.executable, "-m", "tools.tables", "--check"]
    result = subprocess.run(check, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_files_and_tests_that_it_names_exist() -> None:
    for path in re.findall(r"(?<![\w/])((?:benchmarks|configs|results|notebooks|tools)/[\w/]+\.\w+)", README):
        assert (REPOSITORY / path).exists(), path
    sources = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", README):
        assert f"def {name}(" in sources, name


def test_its_line_of_python_runs() -> None:
    (line,) = re.findall(r"```python\n(.*?)\n```", README)
    exec(line, {})
