"""`python -m bench.sale`."""

import sys

from bench.sale.running import main

sys.exit(main())
