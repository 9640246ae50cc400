"""`python -m fxquant`: what can be asked of files (`fxquant.command_line`)."""

import sys

from fxquant.command_line import main

sys.exit(main())
