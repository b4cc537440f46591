"""Every figure and image grid of the package, as arrays of pixels; `show` makes a picture that a notebook shows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
