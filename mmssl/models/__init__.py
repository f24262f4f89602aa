"""Recommender models, one file each."""
