"""``python -m bestie_pl`` is ``bestie-pl``."""

import sys

from bestie_pl.cli.main import main

sys.exit(main())
