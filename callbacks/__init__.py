"""The callbacks. In the repository this folder stands at the top; installed, it is `zoo.callbacks`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
