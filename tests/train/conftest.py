"""Eight virtual devices for the tests of parallel layouts: they must be asked for before JAX starts."""

from __future__ import annotations

import os

import pytest

FLAG = "--xla_force_host_platform_device_count=8"
if FLAG not in os.environ.get("XLA_FLAGS", ""):  # read when JAX first looks for devices, after all tests were collected
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAG}".strip()


@pytest.fixture(scope="session")
def eight():
    import jax

    devices = jax.devices()
    if len(devices) < 8:
        pytest.skip("JAX looked for devices before it was told to make eight")
    return devices[:8]
