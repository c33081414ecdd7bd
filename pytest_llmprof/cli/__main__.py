"""`python -m pytest_llmprof.cli`: the command `llmprof` where its script is not on PATH."""

import sys

from pytest_llmprof.cli import main

sys.exit(main())
