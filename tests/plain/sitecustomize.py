"""Hides the compiled modules from every Python process whose PYTHONPATH begins here.

``make test-plain`` runs the tests in that way, as they run where nothing could be compiled.
"""

import sys

for name in ("_C", "_C_cuda", "_host"):
    sys.modules[f"mmssl.{name}"] = None  # type: ignore[assignment]  # importing it fails
