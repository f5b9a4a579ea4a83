"""`python -m workers`: the parent of a host's workers."""

import sys

from workers.main import main

sys.exit(main())
