"""Which Enginesmith this is."""

from importlib.metadata import version

VERSION = version("enginesmith")
