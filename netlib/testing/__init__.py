"""The conformance kit: a public pytest suite for drivers, whosever they are.

A subclass names a driver and what to ask of it; pytest then runs every test of the suite with it::

    from netlib.testing import NetworkDriverSuite

    class TestTunnel(NetworkDriverSuite):
        driver = "tunnel"
        network = {"subnets": ["10.9.0.0/24"], "options": {"key": "7"}}

The tests change the network, so they run in a test host only: ``python -m netlib.testing pytest …`` makes one. Every step of
every verb fails once, and is killed once, and whatever is left behind fails the test by name.
"""

from netlib.testing.ipam import IpamDriverSuite
from netlib.testing.network import NetworkDriverSuite

__all__ = ["IpamDriverSuite", "NetworkDriverSuite"]
