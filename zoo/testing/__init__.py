"""Checks of the contracts in one line of a test, for the zoo's own classes and for those of plugins."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
