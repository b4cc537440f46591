"""lightning-zoo: the systems of one deep-learning lecture, each as a LightningModule that is worth reusing.

The public names stand in `__init__.pyi`; each is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
