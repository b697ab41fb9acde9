"""What the parser of configurations objects to, as one sentence that names the setting and the nearest right one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module

from jsonargparse import ArgumentParser

from bestie_pl.errors import expected_one_of

LONGEST = 200
"""Characters of a value that a message repeats."""

_NOISE = re.compile(
    r"\s*(Does not validate against any|Subtypes:|Errors:$|- Expected a <class 'NoneType'>|Given value|$"
    r"|- Not a valid subclass|Subclass types expect|- a class path|- a dict with)"
)


def in_a_sentence(message: str, options: Iterable[str], classes: Iterable[str]) -> str:
    """An error of jsonargparse in other words; one of no known kind as it is, without the halves that do not apply.

    Args:
        message: What jsonargparse says.
        options: Settings of the command, such as ``trainer.max_steps``.
        classes: Names of classes that are known without the module that holds them.
    """
    field, of_class = _field(message)
    known = _settings(of_class) if of_class else list(options)
    inside = f"{field}.init_args." if of_class else ""
    name = of_class.rpartition(".")[2] or "this command"
    if found := re.search(r"(?:Option|Group) '(\S+)' (?:is not accepted|does not accept option '(\S+)')", message):
        key = ".".join(part for part in found.groups() if part)
        return f"{inside}{key}: {name} has no such setting; {_nearest(key, known)}"
    if found := re.search(r"Subcommand '\S+' does not accept option '(\S+)'", message):
        return f"{found[1]}: {name} has no such setting; {_nearest(found[1], known)}"
    if found := re.search(r"unrecognized arguments: (?:--)?([^\s=]+)", message):
        return f"{found[1]}: this command has no such option; {_nearest(found[1], known)}"
    if found := re.search(r"module '(\S+)' has no attribute '(\S+)'", message):
        public = [name for name in dir(import_module(found[1])) if not name.startswith("_")]
        return f"{field}.class_path: {found[1]} has no {found[2]}; {_nearest(found[2], public)}"
    if found := re.search(r"Expected a dot import path string: (.*)", message):
        wanted = [name for name in classes if field != "data" or name.endswith("DataModule")]
        return f"{field}.class_path: no class is known as {found[1]!r:.200}; {_nearest(found[1], wanted)}"
    if found := re.search(r"No module named '(\S+)'", message):
        return (
            f"{field}.class_path: there is no module {found[1]!r}; correct it, or install the package that holds it "
            "(ours are bestie_pl.CLASS)"
        )
    if found := re.search(r"the following arguments are required: (.*)", message):
        missing = [f"{inside}{key.removeprefix(verb)}" for key in found[1].split(", ") for verb in _verb(key)]
        return f"{' and '.join(missing)} must be given; add it to the configuration (--config FILE)"
    return _wrong_value(message, field) or "\n".join(line for line in message.splitlines() if not _NOISE.match(line))


def _field(message: str) -> tuple[str, str]:
    """The setting that a message is about, and the class among whose settings the fault lies, or else ""."""
    parts = re.findall(r"Parser key \"(.*?)\"|class_path '(.*?)'", message)
    field, of_class = "", ""
    for key, path in parts:
        if key:
            field = f"{field}.init_args.{key}" if of_class else key
            of_class = ""
        else:
            of_class = path
    return field, of_class


def _settings(of_class: str) -> list[str]:
    module, _, name = of_class.rpartition(".")
    try:
        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(getattr(import_module(module), name), fail_untyped=False)
        return list(parser.get_defaults().keys())
    except Exception:  # the class is what is wrong, or somebody else's
        return []


def _nearest(key: str, known: Iterable[str]) -> str:
    """Which of the names was probably meant: one that ends so, or is spelt like it."""
    names = sorted(known)
    same = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
    folded = {name.casefold(): name for name in names}
    close = same or [folded[name] for name in get_close_matches(key.casefold(), folded, n=1, cutoff=0.6)]
    return f"did you mean {close[0]!r}?" if close else expected_one_of(key, names)


def _verb(key: str) -> list[str]:
    return [key.rpartition(".")[0] + "." if key.startswith(("fit.", "validate.", "test.", "predict.")) else ""]


def _wrong_value(message: str, field: str) -> str | None:
    """About a value of another type, or none of those that are allowed."""
    expected = re.findall(r"Expected an? (.*?)(?:\. Got value: .*)?$", message, re.MULTILINE)
    values = re.search(r"(?:Got value|Given value): (.*)", message)  # the innermost comes first
    if not field or not expected or values is None or any("import path" in kind for kind in expected):
        return None
    choices: list[str] = []
    kinds: list[str] = []
    for kind in expected:
        if literal := re.fullmatch(r"typing\.Literal(\[.*\])", kind):
            choices += [str(choice) for choice in ast.literal_eval(literal[1])]
        elif kind != "<class 'NoneType'>":
            kinds.append(re.sub(r"<class '(?:.*\.)?(\w+)'>", r"\1", kind))
    value = values[1][:LONGEST]
    if choices:
        return f"{field}: {value!r}; {expected_one_of(value, choices)}"
    return f"{field}: {value!r}; expected {' or '.join(_TYPES.get(kind, kind) for kind in kinds)}"


_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text (quote it)",
    "tuple": "a list",
    "list": "a list",
    "Sequence": "a list",
    "dict": "a mapping of names to values",
}
"""What YAML's values are called."""
