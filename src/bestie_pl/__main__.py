"""``python -m bestie_pl`` is ``bestie-pl``."""

from bestie_pl.cli import main

main()
