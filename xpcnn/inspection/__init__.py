"""Looking into networks: what they cost, whether their gradients and devices agree, and pictures of them."""

from __future__ import annotations

from .attribution import Attribution, activations, grad_cam, occlusion, read_images, saliency
from .bench import WORKLOADS, BenchReport, BenchRow, Workload, bench
from .compare import Comparison, Run, compare
from .crosscheck import CrosscheckReport, CrosscheckRow, crosscheck
from .doctor import DeviceCheck, Diagnosis, doctor
from .gradcheck import GradientReport, GradientRow, gradcheck, numerical_gradient
from .profile import LayerTime, LayerTimes, Profile, profile, watch_time
from .report import report
from .summary import Summary, SummaryRow, summary
from .trace import Visit, trace
from .visualize import plot_activations, plot_attribution, plot_confusion, plot_curves, plot_filters, plot_runs

__all__ = [
    "WORKLOADS",
    "Attribution",
    "BenchReport",
    "BenchRow",
    "Comparison",
    "CrosscheckReport",
    "CrosscheckRow",
    "DeviceCheck",
    "Diagnosis",
    "GradientReport",
    "GradientRow",
    "LayerTime",
    "LayerTimes",
    "Profile",
    "Run",
    "Summary",
    "SummaryRow",
    "Visit",
    "Workload",
    "activations",
    "bench",
    "compare",
    "crosscheck",
    "doctor",
    "grad_cam",
    "gradcheck",
    "numerical_gradient",
    "occlusion",
    "plot_activations",
    "plot_attribution",
    "plot_confusion",
    "plot_curves",
    "plot_filters",
    "plot_runs",
    "profile",
    "read_images",
    "report",
    "saliency",
    "summary",
    "trace",
    "watch_time",
]
