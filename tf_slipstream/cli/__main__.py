"""Runs `python -m tf_slipstream.cli`."""

import sys

from tf_slipstream.cli.main import main

sys.exit(main())
