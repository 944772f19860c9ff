"""Looking into networks: what they cost, whether their gradients and devices agree, and pictures of them."""

from __future__ import annotations

from .bench import WORKLOADS, BenchReport, BenchRow, Workload, bench
from .crosscheck import CrosscheckReport, CrosscheckRow, crosscheck
from .doctor import DeviceCheck, Diagnosis, doctor
from .gradcheck import GradientReport, GradientRow, gradcheck, numerical_gradient
from .profile import LayerTime, LayerTimes, Profile, profile, watch_time
from .summary import Summary, SummaryRow, summary
from .trace import Visit, trace
from .visualize import plot_curves, plot_filters

__all__ = [
    "WORKLOADS",
    "BenchReport",
    "BenchRow",
    "CrosscheckReport",
    "CrosscheckRow",
    "DeviceCheck",
    "Diagnosis",
    "GradientReport",
    "GradientRow",
    "LayerTime",
    "LayerTimes",
    "Profile",
    "Summary",
    "SummaryRow",
    "Visit",
    "Workload",
    "bench",
    "crosscheck",
    "doctor",
    "gradcheck",
    "numerical_gradient",
    "plot_curves",
    "plot_filters",
    "profile",
    "summary",
    "trace",
    "watch_time",
]
