"""`python -m zslx` is the `zslx` command."""

import sys

from zslx.commands.cli import main

sys.exit(main())
