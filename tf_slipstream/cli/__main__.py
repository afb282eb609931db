"""Runs `python -m tf_slipstream.cli`."""

import sys

from tf_slipstream.cli.program import main

sys.exit(main())
