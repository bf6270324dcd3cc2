"""Array programs on CPU and GPU from one source.

`arrays("cpu")` and `arrays("cuda")` return an `Arrays`: the namespace `xp` (NumPy or CuPy) plus the few operations that the
two spell differently: moving data, transforms along one axis, real 3-D transforms, the symmetric eigenproblem.

On CPU the transforms are SciPy's. Where `pyfftw` is installed (extra `[fftw]`, GPL) the pruned transforms of wavefunctions, the
hot ones, are FFTW's; GEWU_FFT=scipy turns that off.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

from gewu.core.errors import InputError, ResourceError
from gewu.core.hostfft import ScipyArrays
from gewu.core.namespace import Array as Array
from gewu.core.namespace import Arrays as Arrays


def arrays(device: str = "cpu", threads: int = 1) -> Arrays:
    """Return the array namespace of a device.

    Args:
        device: "cpu" or "cuda" (NVIDIA or AMD, through CuPy).
        threads: threads of the Fourier transforms on "cpu".

    Raises:
        InputError: unknown device.
        ResourceError: CuPy or the GPU is missing.
    """
    if device == "cpu":
        return _host_arrays(threads)
    if device != "cuda":
        raise InputError("unknown device", key="device", value=device, allowed="cpu, cuda")
    try:
        import cupy
        import cupyx.scipy.fft

        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises its own kinds when the driver or a library is missing
        raise ResourceError(f"no usable GPU: {error}", hint="install gewu[cuda] on a machine with a GPU, or use cpu") from error
    return Arrays(cupy, cupyx.scipy.fft, host=False)


def _host_arrays(threads: int) -> Arrays:
    """FFTW where `pyfftw` is installed (unless GEWU_FFT=scipy), else SciPy."""
    if os.environ.get("GEWU_FFT") != "scipy" and find_spec("pyfftw"):
        from gewu.core.fftw import FftwArrays

        return FftwArrays(threads)
    return ScipyArrays(threads)
