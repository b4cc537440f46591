"""The models: one folder each, with `network.py` (torch only) and `module.py` (the LightningModule)."""
