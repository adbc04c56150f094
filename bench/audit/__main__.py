"""`python -m bench.audit`."""

import sys

from bench.audit.auditing import main

sys.exit(main())
