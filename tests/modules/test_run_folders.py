"""Each run has its own folder, and the newest complete state is found whatever links and other runs say."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import torch

from bestie_pl.data.files import in_one_move
from bestie_pl.modules.run_folders import (
    claim_run,
    find_checkpoint,
    link_last,
    link_newest,
    newest_checkpoint,
    replace_link,
    runs_of,
    sweep,
)


def write_state(run: Path, step: int) -> Path:
    path = run / "checkpoints" / f"step={step}.ckpt"
    path.parent.mkdir(exist_ok=True)
    torch.save({"step": torch.tensor(step)}, path)
    return path


def test_runs_that_start_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "logs" / "version_7").mkdir(parents=True)
    (tmp_path / "logs" / "version_x").mkdir()
    claimed: list[Path] = []
    threads = [threading.Thread(target=lambda: claimed.append(claim_run(tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in claimed) == sorted(f"version_{n}" for n in range(8, 16))
    assert [path.name for path in runs_of(tmp_path)] == [f"version_{n}" for n in range(15, 6, -1)]


def test_last_is_the_newest_complete_state_of_the_newest_run(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert newest_checkpoint(tmp_path) is None and find_checkpoint(last) == last
    first, second = claim_run(tmp_path), claim_run(tmp_path)
    write_state(first, 100)
    link_last(tmp_path)
    assert find_checkpoint(last) == first / "checkpoints" / "step=100.ckpt"  # the second has none yet
    nine, ten = write_state(second, 9), write_state(second, 10)
    link_last(tmp_path)
    assert last.resolve() == ten.resolve() and find_checkpoint(last) == ten

    # the first run is still at work
    write_state(first, 200)
    link_last(tmp_path)
    assert last.resolve() == ten.resolve()

    # killed while it wrote, and while it replaced the link
    ten.write_bytes(ten.read_bytes()[:-50])
    assert find_checkpoint(last) == nine
    last.unlink()
    assert find_checkpoint(last) == nine
    last.symlink_to("gone.ckpt")
    assert find_checkpoint(last) == nine
    assert find_checkpoint(first / "checkpoints" / "step=100.ckpt") == first / "checkpoints" / "step=100.ckpt"


def test_a_file_in_the_place_of_a_link_is_kept(tmp_path: Path) -> None:
    link = tmp_path / "scores_test.json"
    for number, text in enumerate(("mine", "mine too")):
        link.unlink(missing_ok=True)
        link.write_text(text)
        target = tmp_path / f"{number}.json"
        target.write_text(str(number))
        replace_link(link, target)
        assert link.is_symlink() and link.read_text() == str(number)
    assert (tmp_path / "scores_test-before.json").read_text() == "mine"
    assert (tmp_path / "scores_test-before1.json").read_text() == "mine too"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_links_lead_to_the_newest_file_of_a_name(tmp_path: Path) -> None:
    first, second = claim_run(tmp_path), claim_run(tmp_path)
    (first / "scores_test.json").write_text("first")
    link_newest(tmp_path, "scores_test.json")
    assert (tmp_path / "scores_test.json").read_text() == "first"
    (second / "scores_test.json").write_text("second")
    for _ in range(2):
        link_newest(tmp_path, "scores_test.json")
        assert (tmp_path / "scores_test.json").read_text() == "second"
    link_newest(tmp_path, "absent.json")
    assert not (tmp_path / "absent.json").is_symlink()


def test_half_written_files_of_the_dead_are_swept(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    with in_one_move(tmp_path / f"{'0' * 60}.json") as half:  # a part of a long name
        old, new = tmp_path / f".2{half.name}", tmp_path / "below" / half.name
    others = [tmp_path / name for name in (".gitignore", ".a.json", "a.json.part-12345678", ".notes.txt.backup")]
    for path in (old, new, *others):
        path.write_text("x")
        os.utime(path, (time.time() - 100,) * 2)
    os.utime(new)
    sweep(tmp_path)
    assert not old.exists() and new.exists() and all(path.exists() for path in others)
