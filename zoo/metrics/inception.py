"""Features of Inception for the Fréchet inception distance (FID), which compares with that of the literature.

Heusel et al. 2017 (arXiv 1706.08500) measure in the 2048 features of one particular network, Inception v3 as TensorFlow
published it in 2015, on images with 256 levels after a bilinear resize to 299x299 pixels without antialiasing. Other
weights or another resize give other numbers (Parmar et al. 2022, arXiv 2104.11222). The network is torch-fidelity's
port; its weights are a file of 96 MB that is read where torch.hub keeps such files, and never downloaded by itself.
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.errors import UserError

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
#: Hash of the weights; pytorch-fid publishes the same file under another name.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CHUNK = 50  # images per call of the network, whose first layers take 10 MB for each


class InceptionFeatures(nn.Module):
    """The 2048 features of Inception v3 that the FID is measured in.

    The network is loaded by `load`, or when it is first used, so that a model that was validated with it can be loaded
    and draw samples without it.

    Args:
        network: network from images (N, 3, H, W), uint8, to a tuple with their features (N, 2048); None for Inception.
    """

    name = "inception"
    sha256 = SHA256
    num_features = 2048
    description = f"2048 features of Inception, weights {SHA256[:8]}: the FID"

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network

    def load(self) -> nn.Module:
        """The network, which is read from its file by the first call.

        Raises:
            UserError: torch-fidelity or the file of weights is missing, or the file is another one.
        """
        if self.network is None:
            self.network = load_inception()
        return self.network

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) with 1 or 3 channels, floats in [-1, 1], to features, float32 (N, 2048).

        Raises:
            ValueError: `x` has another shape.
        """
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise ValueError(f"images of shape {tuple(x.shape)}; expected (N, 1, H, W) or (N, 3, H, W)")
        network = self.load().to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            parts = [network(to_pixels(part))[0] for part in x.split(CHUNK)]
        return torch.cat(parts).float()


def to_pixels(x: Tensor) -> Tensor:
    """Images (N, C, H, W), floats in [-1, 1], to RGB with 256 levels, uint8 (N, 3, H, W); gray ones are repeated."""
    levels = ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.expand(-1, 3, -1, -1).contiguous()


def weights_path() -> Path:
    """Path to the file of weights: in the folder of torch.hub, TORCH_HOME or ~/.cache/torch."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def load_inception(path: Path | None = None, sha256: str = SHA256) -> nn.Module:
    """Loads Inception on the CPU, in eval mode and without gradients; no random numbers are drawn.

    Args:
        path: file of weights (default: where torch.hub keeps it).
        sha256: hash that the file must have.

    Raises:
        UserError: torch-fidelity or the file is missing, or the file has another hash.
    """
    if find_spec("torch_fidelity") is None:
        raise UserError(
            "the extractor inception needs torch-fidelity, which is not installed: pip install lightning-zoo[fid]"
        )
    path = path or weights_path()
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(
            f"the extractor inception cannot read {path}: {error.strerror}; download {URL} (96 MB) to there"
        ) from error
    if found != sha256:
        raise UserError(
            f"{path} is not the FID's network: its sha256 begins with {found[:8]}, not {sha256[:8]}; download {URL}"
        )
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with torch.random.fork_rng(devices=[]):  # the constructor draws weights before it loads them
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    return network.eval().requires_grad_(False)
