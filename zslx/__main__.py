"""`python -m zslx` is the `zslx` command."""

import sys

from zslx.cli import main

sys.exit(main())
