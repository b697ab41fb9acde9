"""The short help of the verbs: at once, in groups, and true."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from typing import Any, get_type_hints

import pytest

from bestie_pl.cli.help import DATA_MODULES, GROUPS, MODULES, brief_help
from bestie_pl.cli.main import VERBS, main


def accepted(option: str) -> tuple[bool, Any]:
    """Whether the class that an option is about takes it, and its default."""
    import pytorch_lightning as pl

    from bestie_pl import BestieModule, FolderDataModule, InstanceDataModule

    part, _, rest = option.removeprefix("--").partition(".")
    names = rest.removeprefix("init_args.").split(".")
    homes = {"trainer": [pl.Trainer], "data": [InstanceDataModule, FolderDataModule], "model": [BestieModule]}[part]
    for home in homes:
        found: Any = inspect.Parameter.empty
        kind: Any = home
        for name in names:
            parameters = inspect.signature(kind).parameters
            if name not in parameters:
                break
            found = parameters[name].default
            kind = get_type_hints(kind.__init__).get(name)
        else:
            return True, found
    return False, None


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_one_and_has_the_default_that_is_said(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help", "all"])
    assert stop.value.code in (0, None)
    whole = capsys.readouterr().out
    assert "--trainer.reload_dataloaders_every_n_epochs" in whole, "the help of Lightning"
    for _, options in GROUPS[verb]:
        for option, text in options:
            name, *_ = option.split()
            if name.endswith(".help") or "init_args" not in name:
                assert re.search(rf"{name}\b", whole), name
            if "." in name and not name.endswith(".help"):
                taken, default = accepted(name)
                assert taken, name
                if said := re.search(r"\((\d[\d.]*)\)", text):
                    assert float(said[1]) == default, name
    for name in re.findall(r"--trainer\.\w+", brief_help(verb, "x")):
        assert accepted(name)[0]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--config", "some.yaml", "--help"]])
def test_it_answers_without_torch(verb: str, arguments: list[str]) -> None:
    code = f"import sys; from bestie_pl.cli.main import main; print(main({[verb, *arguments]}), 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert shown[-1] == "0 False"
    assert shown[0] == f"usage: bestie-pl {verb} --config FILE [options]"
    assert max(map(len, shown)) <= 110 and len(shown) < 65
    assert any("--data.help CLASS" in line for line in shown) and f"bestie-pl {verb} --help all" in shown[-2]


def test_the_classes_are_the_public_ones() -> None:
    import bestie_pl

    public = [name for name in bestie_pl.__all__ if name.endswith("DataModule") and name != "InstanceDataModule"]
    assert sorted(public) == list(DATA_MODULES)
    import pytorch_lightning as pl

    modules = [n for n in bestie_pl.__all__ if n[0].isupper() and issubclass(getattr(bestie_pl, n), pl.LightningModule)]
    assert sorted(modules) == list(MODULES)
