"""The ``bestie-pl`` command: answers at once what needs no torch, and hands the rest to Lightning."""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from importlib import import_module

from bestie_pl import __version__
from bestie_pl.cli.help import brief_help
from bestie_pl.errors import UserError, expected_one_of

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
    "labels": "choose from a training set's predictions what a second stage learns",
    "pipeline": "run all stages of a way from tags or points to masks, and only those that are not done",
    "export": "write a trained network as ONNX or as a torch program, with its weights and a model card",
    "coco-results": "join predictions into COCO's results.json, as its test servers take it",
    "segment": "find objects in images: a file, a folder or a pattern -> overlays, label images, tables",
    "report": "one page about a run: scores, curves, pictures, settings",
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
        *(f"  {verb:<14}{purpose}" for verb, purpose in (VERBS | COMMANDS).items()),
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
        return _fail(f"unknown command {first!r}; {expected_one_of(first, VERBS | COMMANDS)}")
    if first in VERBS and given[-1] in ("-h", "--help"):
        print(brief_help(first, VERBS[first]))
        return 0
    if first in VERBS and given[1:] == ["--help", "all"]:
        args = [first, "--help"]
    run = partial(_run_command, first, given[1:]) if first in COMMANDS else partial(_run, args)
    if os.environ.get("BESTIE_DEBUG") == "1":
        return run()
    try:
        return run()
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except (ValueError, OSError) as error:
        message = _message_for_user(error)
        if message is None:
            raise
        return _fail(message)
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        return _fail(f"torchvision does not work with this torch; install the torchvision that matches it ({error})")


def _run(args: list[str] | None) -> int:
    from bestie_pl.cli.configuration import guard_configurations
    from bestie_pl.cli.lightning import run

    guard_configurations()
    try:
        run(args)
    except SystemExit as stop:
        # Lightning turns the interrupt of a fit, once its checkpoint is written, into a plain failure
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from stop
        raise
    return 0


def _run_command(name: str, args: list[str]) -> int:
    command = import_module(f"bestie_pl.cli.commands.{name.replace('-', '_')}")
    if name in ("data", "labels", "sheet"):  # they read a configuration
        from bestie_pl.cli.configuration import guard_configurations

        guard_configurations()
    status: int = command.main(args)
    return status


def _fail(message: str, status: int = EXIT_USAGE) -> int:
    print(f"bestie-pl: error: {message}", file=sys.stderr)
    return status


def _message_for_user(error: BaseException) -> str | None:
    """What to tell the user, or None if the error is a defect of the program, whose traceback is wanted.

    Files that are missing or forbidden, and full disks, are the user's to put right wherever they are met. A plain
    ValueError is so only where this package or Lightning raises it about a setting; from inside torch it says nothing
    to the person who holds the data.
    """
    if isinstance(error, (UserError, OSError)):
        return _without_number(_of_worker(error))
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    raised_in = "" if at is None else at.tb_frame.f_globals.get("__name__", "").split(".")[0]
    if raised_in == "jsonargparse" and error.__cause__ is not None:
        # what a class objects to its arguments comes wrapped in all that the argument might have been
        return _message_for_user(error.__cause__)
    if TRACEBACK in str(error):
        # a worker names the file of the code in the text of its traceback
        frames = re.findall(r'^  File "(.*?)", line', str(error), re.MULTILINE)
        return _of_worker(error) if frames and frames[-1].startswith(PACKAGE) else None
    if isinstance(error, ImportError):  # a class that needs a package, such as a logger
        return str(error).strip().splitlines()[0]
    return str(error).strip() if raised_in in ("bestie_pl", "pytorch_lightning") else None


TRACEBACK = "Original Traceback"
"""What the report of a DataLoader's worker holds; its exception has the class of the one that the worker met."""


def _of_worker(error: BaseException) -> str:
    """The message of an error, also of one that a worker's report carries behind its traceback."""
    report = str(error)
    if TRACEBACK not in report:
        return report
    last = list(re.finditer(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", report, re.MULTILINE))
    return report[last[-1].end() :].strip() if last else report


def _without_number(message: str) -> str:
    """A message of the operating system without its ``[Errno 2]``."""
    return re.sub(r"^\[Errno \d+\] ", "", message)
