"""Projection of 3D Gaussians to screen-space means, conics, depths and exact extents."""

from torch import Tensor

from splatexp_kernels import dispatch
from splatexp_kernels.project.reference import Projection

__all__ = ["Projection", "project"]


def project(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    *,
    eps2d: float = 0.3,
    near: float = 0.01,
    far: float = 1e10,
    cull_radius_px: float = 0.0,
    prefilter: bool = False,
    backend: str = "cpu",
) -> Projection:
    """Project N Gaussians into C pinhole cameras.

    Args:
        means: [N,3] world units.
        quats: [N,4] (w,x,y,z), of any length but 0.
        scales: [N,3] world units, activated.
        opacities: [N] activated; they decide the extents and receive no gradient.
        viewmats: [C,4,4] world to camera, OpenCV axes.
        Ks: [C,3,3] px, no skew; pixel centres at +0.5; no gradient.
        width, height: size of the image, px.
        eps2d: px^2 added to the diagonal of the 2D covariance.
        near, far: world units; only depths strictly between them are visible.
        cull_radius_px: where above 0, Gaussians whose larger half extent does not exceed it are culled.
        prefilter: fill `compensations`, by which the caller multiplies opacities, so that eps2d blurs without
            brightening; extents take it into account.

    Returns: Projection. Gaussians are also culled where they are below ALPHA_MIN everywhere, outside the
        image, have a singular 2D covariance, or hold anything that is not finite (a zero quaternion, too).
    Gradients: means, quats, scales, viewmats; exactly 0 for culled Gaussians.
    Raises: ValueError, TypeError for arguments; RuntimeError, ImportError for a missing backend.
    Source: Zwicker et al. 2001, eq. 24-31; Kerbl et al. 2023, eq. 5-6; Yu et al. 2024, eq. 9.
    Differs: 3DGS takes 3 sigma of the larger axis as a square's half side; here the box is exact and depends
        on opacity.
    """
    tensors = {
        "means": (means, "N 3"), "quats": (quats, "N 4"), "scales": (scales, "N 3"),
        "opacities": (opacities, "N"), "viewmats": (viewmats, "C 4 4"), "Ks": (Ks, "C 3 3"),
    }  # fmt: skip
    dispatch.check_tensors(backend, tensors)
    dispatch.check_range("width", width, 1)
    dispatch.check_range("height", height, 1)
    dispatch.check_range("eps2d", eps2d, 0)
    dispatch.check_range("near", near, 0)
    dispatch.check_range("far", far, near)
    dispatch.check_range("cull_radius_px", cull_radius_px, 0)
    return dispatch.backend_module("project", backend).project(
        means, quats, scales, opacities, viewmats, Ks, width, height,
        eps2d=eps2d, near=near, far=far, cull_radius_px=cull_radius_px, prefilter=prefilter,
    )  # fmt: skip
