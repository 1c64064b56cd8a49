"""Adam over the parameters of Gaussians, one fused update each, with the moments that `Splats` carries."""

from dataclasses import dataclass

from torch import Tensor

from splatexp.choices import check_range
from splatexp.splats import PARAMS, Splats
from splatexp_kernels.adam import adam


@dataclass
class Adam:
    """Learning rates per parameter, as in the code of 3DGS; a parameter without a gradient rests.

    Source: Kerbl et al. 2023. Differs: opacities learn at 0.05 as the paper's first code did, not at 0.025.
    """

    means: float = 1.6e-4  # times the scene's extent
    quats: float = 1e-3
    log_scales: float = 5e-3
    opacity_logits: float = 0.05
    sh0: float = 2.5e-3
    shN: float = 2.5e-3 / 20
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-15
    sparse: bool = False  # rows that the step's view does not see rest, and so do their moments

    def __post_init__(self) -> None:
        for name in (*PARAMS, "eps"):
            check_range(f"optimizer.{name}", getattr(self, name), 0)
        for name in ("beta1", "beta2"):
            check_range(f"optimizer.{name}", getattr(self, name), 0, 1 - 1e-9)

    def step(
        self, splats: Splats, step: int, *, means: float, others: float, visible: Tensor, backend: str
    ) -> None:
        """Update every parameter in place and drop its gradient.

        Args:
            step: of the run, from 0.
            means, others: factors of the learning rates.
            visible: [C,N] bool; used where `sparse`.
        """
        rows = visible.any(0) if self.sparse else None
        for name, param in splats.params.items():
            if param.grad is None:
                continue
            rate = getattr(self, name) * (means * splats.extent if name == "means" else others)
            adam(
                param, param.grad, splats.exp_avg[name], splats.exp_avg_sq[name], step=step + 1, lr=rate,
                beta1=self.beta1, beta2=self.beta2, eps=self.eps, visible=rows, backend=backend,
            )  # fmt: skip
            param.grad = None
