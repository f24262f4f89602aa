"""MMSSL, the multi-modal self-supervised recommender (WWW 2023), and its ops.

Importing this package does nothing; import the room you need: :mod:`mmssl.ops`,
:mod:`mmssl.models`, :mod:`mmssl.training`, :mod:`mmssl.data`.
"""

__version__ = "0.1.0"
