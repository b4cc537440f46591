"""Data modules. The folder is at the top of the repository; installed, it is the package `zoo.datamodules`."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
