"""Entry point of ``python -m mmssl``, equivalent to the command ``mmssl``."""

from mmssl.cli import command

command()
