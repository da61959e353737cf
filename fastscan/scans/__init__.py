"""Recurrences of any kind over a series: a user's own, affine ones, and nonlinear ones by Newton's method."""

from fastscan.kernels.scan.recurrence import Recurrence
from fastscan.scans.affine import affine_scan
from fastscan.scans.general import scan
from fastscan.scans.newton import NewtonScan, newton_scan

__all__ = ["NewtonScan", "Recurrence", "affine_scan", "newton_scan", "scan"]
