"""Entry point of ``python -m mmssl``, equivalent to the command ``mmssl``."""

import sys

from mmssl.cli import main

sys.exit(main())
