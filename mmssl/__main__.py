"""``python -m mmssl`` is the same as ``mmssl``."""

import sys

from mmssl.cli import main

sys.exit(main())
