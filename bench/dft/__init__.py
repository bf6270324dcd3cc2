"""Plane-wave DFT against Quantum ESPRESSO's pw.x: the same crystal, pseudopotential, cutoff, k-points and FFT grid."""
