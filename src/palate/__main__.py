"""`python -m palate`, which `accelerate launch -m palate` needs."""

import sys

from palate.cli.main import main

sys.exit(main())
