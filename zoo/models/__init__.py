"""The models: one folder each, with `network.py` (torch only) and `module.py` (the LightningModule).

The networks are public here, `from zoo.models import UNet`; each is imported when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
