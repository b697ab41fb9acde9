"""The ``bestie-pl`` command: answers at once what needs no torch, and hands the rest to Lightning."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from importlib import import_module

from bestie_pl import __version__

VERBS = {
    "fit": "train, validating as it goes",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images",
    "predict": "write instance masks for images",
}
COMMANDS: dict[str, str] = {
    "init": "look at a folder of images and labels and write its configurations",
    "data": "check a data set: `bestie-pl data check --config CONFIG`",
    "convert": "turn a checkpoint of the authors' release into one of this package",
    "points": "turn what annotation programs write into points",
    "export": "join predictions into COCO's results.json, as its test servers take it",
    "sheet": "draw activation maps and cues of classifiers side by side",
}
"""What each command without a Trainer is for; ``bestie_pl.cli.commands.NAME.main`` does it."""

HELP = "\n".join(
    [
        "usage: bestie-pl [-h] [--version] {" + ",".join(VERBS | COMMANDS) + "} ...",
        "",
        "Instance segmentation learnt from image tags or one point per object.",
        "",
        "commands:",
        *(f"  {verb:<12}{purpose}" for verb, purpose in (VERBS | COMMANDS).items()),
        "",
        "options:",
        "  -h, --help  show this text; `bestie-pl fit --help` lists the options of a command",
        "  --version   show the version",
        "",
        "examples:",
        "  bestie-pl fit --config configs/voc/points.yaml --trainer.max_epochs 10",
        "  bestie-pl test --config configs/voc/points.yaml --ckpt_path last.ckpt",
        "",
        "After an error, BESTIE_DEBUG=1 shows where in the code it came from.",
    ]
)

PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

EXIT_USAGE = 2
"""What argparse exits with; used for everything that the user can put right."""

EXIT_INTERRUPTED = 130
"""The shell's convention: 128 and the number of the signal."""


def main(args: list[str] | None = None) -> int:
    """Run one command and return the exit status of the process.

    Args:
        args: The command line; that of the process where it is None.
    """
    given = sys.argv[1:] if args is None else args
    first = given[0] if given else "--help"
    if first in ("-h", "--help"):
        print(HELP)
        return 0
    if first == "--version":
        print(f"bestie-pl {__version__}")
        return 0
    if not first.startswith("-") and first not in VERBS | COMMANDS:
        return _fail(f"unknown command {first!r}; expected one of {', '.join(VERBS | COMMANDS)}")
    run = partial(_run_command, first, given[1:]) if first in COMMANDS else partial(_run, args)
    if os.environ.get("BESTIE_DEBUG") == "1":
        return run()
    try:
        return run()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        message = _message_for_user(error)
        if message is None:
            raise
        return _fail(message)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        return _fail(f"torchvision does not work with this torch; install the torchvision that matches it ({error})")


def _run(args: list[str] | None) -> int:
    from bestie_pl.cli.lightning import run

    try:
        run(args)
    except SystemExit as stop:
        # Lightning turns the interrupt of a fit, once its checkpoint is written, into a plain failure
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return 0


def _run_command(name: str, args: list[str]) -> int:
    status: int = import_module(f"bestie_pl.cli.commands.{name}").main(args)
    return status


def _fail(message: str, status: int = EXIT_USAGE) -> int:
    print(f"bestie-pl: error: {message}", file=sys.stderr)
    return status


def _message_for_user(error: BaseException) -> str | None:
    """What to tell the user, or None if the error is a defect of the program, whose traceback is wanted.

    Missing and forbidden files are the user's to put right wherever they are met, values only where this package
    objects to them: a ValueError from inside torch says nothing to the person who holds the data.
    """
    if "Original Traceback" in str(error):
        return _message_of_worker(str(error))
    if isinstance(error, (FileNotFoundError, PermissionError)):
        return _without_number(str(error))
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    raised_in = "" if at is None else at.tb_frame.f_globals.get("__name__", "").split(".")[0]
    if raised_in == "jsonargparse" and error.__cause__ is not None:
        # what a class objects to its arguments comes wrapped in all that the argument might have been
        return _message_for_user(error.__cause__)
    return str(error) if raised_in == "bestie_pl" else None


def _message_of_worker(report: str) -> str | None:
    """The same for an error in a worker of a DataLoader, which arrives as the text of a traceback."""
    errors = list(re.finditer(r"^(ValueError|FileNotFoundError|PermissionError): ", report, re.MULTILINE))
    if not errors:
        return None
    error = errors[-1]
    frames = re.findall(r'^  File "(.*?)", line', report[: error.start()], re.MULTILINE)
    ours = bool(frames) and frames[-1].startswith(PACKAGE)
    return _without_number(report[error.end() :].strip()) if ours or error[1] != "ValueError" else None


def _without_number(message: str) -> str:
    """A message of the operating system without its ``[Errno 2]``."""
    return re.sub(r"^\[Errno \d+\] ", "", message)
