"""Fréchet distance between two sets of images, in the features of a small classifier or of Inception, as the FID.

Heusel et al. 2017 (arXiv 1706.08500), eq. 6: with the mean m and the covariance C of the features of each set,
d^2 = |m_r - m_f|^2 + tr(C_r + C_f - 2 (C_r C_f)^(1/2)). The value is the squared distance d^2, as for the FID. A finite
number n of samples biases it upwards: compare values only at equal n, and with the floor, the distance between training
and test images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from zoo.metrics.device import FixedPrecisionMetric, target_device
from zoo.metrics.features import FeatureExtractor
from zoo.metrics.inception import InceptionFeatures


class FrechetDistance(FixedPrecisionMetric, FrechetInceptionDistance):
    """Fréchet distance between real and generated images; lower is better, 0 for equal means and covariances.

    States are float64 sums, reduced over ranks. The extractor is not a submodule, so its weights are neither among the
    parameters nor in the checkpoints of a model with this metric. It moves to the metric's device and stays float32.

    Args:
        extractor: network from images (N, C, H, W) to features (N, d), with d as its attribute `num_features`; it is
            set to eval mode.
        reset_real_features: whether `reset` also clears the real images; false keeps their features if they are the
            same in every epoch.

    Example:
        >>> metric = FrechetDistance(load_extractor("digits"))
        >>> metric.update(images, real=True)
        >>> metric.update(model.sample(500), real=False)
        >>> metric.compute()
    """

    def __init__(self, extractor: FeatureExtractor | InceptionFeatures, reset_real_features: bool = True) -> None:
        super().__init__(feature=extractor.eval(), reset_real_features=reset_real_features)
        # A plain attribute instead of a submodule, so that `state_dict` and `parameters` do not contain it.
        self.__dict__["inception"] = self._modules.pop("inception")

    @property
    def extractor(self) -> FeatureExtractor | InceptionFeatures:
        """Feature extractor."""
        return self.__dict__["inception"]

    def update(self, imgs: Tensor, real: bool) -> None:
        """Adds images to the real or the generated ones.

        Args:
            imgs: images (N, C, H, W), floats in [-1, 1], or their features (N, d), where the caller has them already.
            real: whether the images are real.

        Raises:
            ValueError: `imgs` has neither shape.
        """
        features = imgs if imgs.ndim == 2 else self.extractor(imgs)
        if features.shape[1] != self.extractor.num_features:
            raise ValueError(f"features of shape {tuple(features.shape)}; expected (N, {self.extractor.num_features})")
        # To the device first, then to float64, which Apple's GPUs lack.
        features = features.to(self.real_features_sum.device).double()
        side = "real" if real else "fake"
        for name, value in (
            ("features_sum", features.sum(dim=0)),
            ("features_cov_sum", features.T @ features),
            ("features_num_samples", len(features)),
        ):
            name = f"{side}_{name}"
            setattr(self, name, getattr(self, name) + value)

    def compute(self) -> Tensor:
        """Squared distance, a float32 scalar; NaN if there are fewer than two real or two generated images."""
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
    """Squared Fréchet (Wasserstein-2) distance between two normal distributions (Dowson and Landau 1982).

    The trace of (C_a C_b)^(1/2) is computed as that of (A C_b A)^(1/2) with A = C_a^(1/2), so that all matrices are
    symmetric; this also holds for singular covariances, from fewer samples than dimensions.

    Args:
        mean_a: mean of the first distribution, (d,).
        cov_a: covariance of the first distribution, (d, d).
        mean_b: mean of the second distribution, (d,).
        cov_b: covariance of the second distribution, (d, d).

    Returns:
        A scalar; NaN if an input is not finite.
    """
    if not all(moment.isfinite().all() for moment in (mean_a, cov_a, mean_b, cov_b)):
        return mean_a.new_full((), torch.nan)  # eigh would not report it
    eigenvalues, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * eigenvalues.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return distance.clamp_min(0)  # rounding errors can make it negative


def _moments(total: Tensor, products: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (d,) and unbiased covariance (d, d) of n samples, from the sums of x (d,) and of x x^T (d, d)."""
    n = n.to(total.device)  # on Apple's GPUs counts are on the device, and sums in float64 are not
    mean = total / n
    return mean, (products - n * torch.outer(mean, mean)) / (n - 1)
