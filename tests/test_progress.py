"""Bars are for people: on terminals, on standard error, and only where one has to wait."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

CODE = """
import sys, time
from bestie_pl.progress import progress
for n in progress(range(4), "counting", "things", patience=float(sys.argv[1])):
    time.sleep(0.15)
print("done")
"""


def on_a_terminal(patience: float) -> tuple[str, str]:
    """What a loop of 0.6 s leaves on a terminal that is its standard error, and on standard output."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    done = subprocess.run([sys.executable, "-c", CODE, str(patience)], stdout=subprocess.PIPE, stderr=child, text=True)
    os.close(child)
    shown = b""
    try:
        while part := os.read(parent, 4096):
            shown += part
    except OSError:  # Linux says so at the end
        pass
    finally:
        os.close(parent)
    return shown.decode(), done.stdout


def test_a_terminal_sees_number_and_rate() -> None:
    shown, printed = on_a_terminal(0)
    assert "counting:" in shown and "/4 [" in shown and " things/s" in shown
    assert printed == "done\n"


def test_what_is_soon_done_shows_nothing() -> None:
    assert on_a_terminal(30) == ("", "done\n")


def test_files_see_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, "0"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("done\n", "")
