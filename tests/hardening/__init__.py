"""Checks that are too long for the test suite; ``python -m tests.hardening`` runs them all."""
