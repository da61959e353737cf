"""Code that calls dynamax, and gets fastscan: no line of it changes."""

from fastscan.adoption.adopting import Adoption, adopt

__all__ = ["Adoption", "adopt"]
