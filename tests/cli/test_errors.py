from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch._utils import ExceptionWrapper

from bestie_pl.cli import main as cli
from bestie_pl.errors import UserError
from bestie_pl.structures import Geometry


def _objection_of_ours() -> Any:
    return Geometry(peak_window=4)


def _user_error() -> Any:
    raise UserError("a.csv: line 2: wrong; correct it")


def _user_error_from_inside_a_library() -> Any:
    """The class decides, not where it was raised."""
    exec("raise error('b.csv: wrong')", {"error": UserError, "__name__": "numpy.core"})


def _full_disk() -> Any:
    raise OSError(28, "No space left on device", "/data/a.ckpt")


def _defect() -> Any:
    return int("seven")


class NeedsPackage:
    """As Lightning's logger for TensorBoard."""

    def __init__(self) -> None:
        raise ModuleNotFoundError("board is not available. Try `pip install board`.\nHINT: more of it")


def _missing_package() -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--logger", type=NeedsPackage | bool)
    parser.instantiate_classes(parser.parse_args([f"--logger={__name__}.NeedsPackage"]))


def _missing_file() -> Any:
    return open("/nowhere/points.txt")  # noqa: SIM115  it does not open


def _interrupt() -> Any:
    raise KeyboardInterrupt


def _interrupt_as_lightning_reports_it() -> Any:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        sys.exit(1)


def _torchvision_for_another_torch() -> Any:
    raise RuntimeError("operator torchvision::nms does not exist")


def _in_worker(fail: Callable[[], Any]) -> Callable[[], Any]:
    """Fail as it looks when a worker of a DataLoader fails (a real worker takes five seconds to stop after that)."""

    def action() -> None:
        try:
            fail()
        except Exception:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    return action


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], int]:
    """Run `bestie-pl fit` with something else in the place of Lightning."""
    monkeypatch.delenv("BESTIE_DEBUG", raising=False)

    def run(action: Callable[[], Any]) -> int:
        module = ModuleType("bestie_pl.cli.lightning")
        module.run = lambda args: action()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return cli.main(["fit"])

    return run


@pytest.mark.parametrize(
    ("action", "status", "message"),
    [
        (_objection_of_ours, 2, "peak_window must be odd, got 4"),
        (_in_worker(_objection_of_ours), 2, "peak_window must be odd, got 4"),
        (_user_error, 2, "a.csv: line 2: wrong; correct it"),
        (_in_worker(_user_error), 2, "a.csv: line 2: wrong; correct it"),
        (_user_error_from_inside_a_library, 2, "b.csv: wrong"),
        (_full_disk, 2, "No space left on device: '/data/a.ckpt'"),
        (_in_worker(_full_disk), 2, "No space left on device: '/data/a.ckpt'"),
        (_missing_package, 2, "board is not available. Try `pip install board`."),
        (_missing_file, 2, "No such file or directory: '/nowhere/points.txt'"),
        (_in_worker(_missing_file), 2, "No such file or directory: '/nowhere/points.txt'"),
        (_interrupt, 130, "interrupted"),
        (_interrupt_as_lightning_reports_it, 130, "interrupted"),
    ],
)
def test_the_users_errors_are_one_line(
    command: Callable[[Callable[[], Any]], int],
    action: Callable[[], Any],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(action) == status
    assert capsys.readouterr().err == f"bestie-pl: error: {message}\n"


def test_unmatched_torchvision_names_the_remedy(
    command: Callable[[Callable[[], Any]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(_torchvision_for_another_torch) == 2
    assert "install the torchvision that matches it" in capsys.readouterr().err


@pytest.mark.parametrize("action", [_defect, _in_worker(_defect)])
def test_a_defect_keeps_its_traceback(command: Callable[[Callable[[], Any]], int], action: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match="seven"):
        command(action)


def test_debugging_keeps_every_traceback(
    command: Callable[[Callable[[], Any]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BESTIE_DEBUG", "1")
    with pytest.raises(ValueError, match="peak_window"):
        command(_objection_of_ours)


def test_success_and_argparse_status_pass_through(command: Callable[[Callable[[], Any]], int]) -> None:
    assert command(lambda: torch.zeros(1)) == 0
    with pytest.raises(SystemExit) as stop:
        command(lambda: sys.exit(2))
    assert stop.value.code == 2


def test_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ftt"]) == 2
    said = capsys.readouterr().err
    assert "unknown command 'ftt'; expected one of fit, validate, test, predict" in said
    assert "(did you mean 'fit'?)" in said
