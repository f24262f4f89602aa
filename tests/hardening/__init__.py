"""Checks too long for the test suite: ``python -m tests.hardening`` runs all and counts."""
