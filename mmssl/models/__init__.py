"""Recommender models: one file or folder each, listed in :mod:`mmssl.models.registry`."""
