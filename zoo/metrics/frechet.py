"""The Fréchet distance of two sets of images in the features of a small classifier.

Heusel et al. (2017, arXiv 1706.08500), equation 6: the features of either set are summarized by their mean m and
covariance C, and d^2 = |m_r - m_f|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)). The value is the squared distance d^2, as the
FID is. It is biased upwards by a finite number of samples: compare only at equal n, and beside the floor, the distance
of training images from test images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from zoo.metrics.device import FixedPrecisionMetric, target_device
from zoo.metrics.features import FeatureExtractor


class FrechetDistance(FixedPrecisionMetric, FrechetInceptionDistance):
    """Fréchet distance of real and generated images; smaller is better, 0 for equal means and covariances.

    The sums are float64 and add over the ranks. The extractor is no submodule: a model that owns the metric has none of
    its weights among its parameters or in its checkpoints. It follows the metric to another device, and stays float32.

    Args:
        extractor: maps images (N, C, H, W) to features (N, d) and has d as `num_features`; it is put in eval mode.
        reset_real_features: whether `reset` forgets the real images too. False saves their features where they are the
            same in every epoch.

    Example:
        >>> metric = FrechetDistance(load_extractor("digits"))
        >>> metric.update(images, real=True)
        >>> metric.update(model.sample(500), real=False)
        >>> metric.compute()
    """

    def __init__(self, extractor: FeatureExtractor, reset_real_features: bool = True) -> None:
        super().__init__(feature=extractor.eval(), reset_real_features=reset_real_features)
        # Out of the registered submodules into the plain attributes, which neither `state_dict` nor `parameters` sees.
        self.__dict__["inception"] = self._modules.pop("inception")

    @property
    def extractor(self) -> FeatureExtractor:
        """The network whose features are compared."""
        return self.__dict__["inception"]

    def update(self, imgs: Tensor, real: bool) -> None:
        """Adds the images `imgs`, float in [-1, 1] (N, C, H, W), to the real or to the generated ones."""
        # First to the device, then to float64, which Apple's GPUs do not have.
        features = self.extractor(imgs).to(self.real_features_sum.device).double()
        side = "real" if real else "fake"
        for name, value in (
            ("features_sum", features.sum(dim=0)),
            ("features_cov_sum", features.T @ features),
            ("features_num_samples", len(features)),
        ):
            name = f"{side}_{name}"
            setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """The distance, a float32 scalar; nan while either side has fewer than two images."""
        if self.real_features_num_samples < 2 or self.fake_features_num_samples < 2:
            return self.real_features_sum.new_full((), torch.nan, dtype=torch.float32)
        mean_real, cov_real = _moments(
            self.real_features_sum, self.real_features_cov_sum, self.real_features_num_samples
        )
        mean_fake, cov_fake = _moments(
            self.fake_features_sum, self.fake_features_cov_sum, self.fake_features_num_samples
        )
        return frechet_distance(mean_real, cov_real, mean_fake, cov_fake).float()

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        super()._apply(fn, exclude_state)
        weight = next(self.extractor.parameters(), None)
        if weight is not None:
            self.extractor.to(target_device(fn, weight))
        return self


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> Tensor:
    """Squared Fréchet (Wasserstein-2) distance of two normal distributions: means (d,), covariances (d, d), a scalar.

    Dowson and Landau (1982). The trace of (C_a C_b)^(1/2) is taken as that of (A C_b A)^(1/2), A = C_a^(1/2), whose
    matrices are symmetric: it holds for singular covariances, of fewer samples than dimensions, too. Of moments that
    are not finite it is nan.
    """
    if not all(moment.isfinite().all() for moment in (mean_a, cov_a, mean_b, cov_b)):
        return mean_a.new_full((), torch.nan)  # which has no eigenvalues; no matrix decomposition says so
    eigenvalues, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return distance.clamp_min(0)  # rounding


def _moments(total: Tensor, products: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) from the sums over n samples of x, (d,), and of x x^T, (d, d)."""
    mean = total / n
    return mean, (products - n * torch.outer(mean, mean)) / (n - 1)
