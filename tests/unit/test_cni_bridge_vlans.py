"""VLANs that the bridge plugin's configuration asks for, as objects."""

from typing import Any

import pytest

from cni_plugins.bridge_vlans import Trunk, port_conf
from cni_plugins.protocol import CniError
from netlib.kernel.vlans import PortVlans


@pytest.mark.parametrize(
    ("vlan", "trunk", "expected"),
    [
        (0, (), None),
        (7, (), {"native": 7}),
        (0, (Trunk(min_id=5, max_id=9),), {"tagged": ((5, 9),)}),
        (4094, (Trunk(id=1), Trunk(min_id=2, max_id=2, id=4)), {"native": 4094, "tagged": ((1, 1), (2, 2), (4, 4))}),
    ],
)
@pytest.mark.parametrize("keeps_default", [False, True])
def test_what_a_port_gets(vlan: int, trunk: tuple[Trunk, ...], expected: dict[str, Any] | None, keeps_default: bool) -> None:
    found = port_conf(vlan, trunk, keeps_default=keeps_default).objects("veth0")
    assert found == ([PortVlans(ifname="veth0", keeps_default=keeps_default, **expected)] if expected is not None else [])


@pytest.mark.parametrize("trunk", [Trunk(min_id=1), Trunk(max_id=1), Trunk(min_id=3, max_id=2), Trunk(id=4095), Trunk(id=-1)])
def test_a_trunk_that_cannot_be(trunk: Trunk) -> None:
    with pytest.raises(CniError):
        port_conf(0, [trunk], keeps_default=False)
