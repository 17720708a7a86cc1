"""`python -m jaxtune` is the command line."""

import sys

from jaxtune.cli.main import entry

sys.exit(entry())
