"""The plugin type ``host-device``: ADD moves a link of the host into the container, DEL moves it back."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, field

from cni_plugins import attaching
from cni_plugins.netconf import NetConf
from cni_plugins.protocol import CniError, Code
from cni_plugins.single_link import LinkPlan, SingleLink
from cni_plugins.skel import Call
from netlib.core.pending_attachment import PendingAttachment
from netlib.errors import ObjectMissing
from netlib.kernel.handle import Kernel
from netlib.kernel.linkinfo import LinkInfo
from netlib.kernel.moved import DeviceBefore, MovedDevice
from netlib.model import NetnsRef
from netlib.names import check_ifname, check_mac

__all__ = ["HostDeviceConf", "HostDevicePlugin"]

_PCI = Path("/sys/bus/pci/devices")
_AUXILIARY = Path("/sys/bus/auxiliary/devices")
_DEVICES = "/sys/devices/"
_BUS_ID = re.compile(r"[A-Za-z0-9_.:-]+")
_FOR_PROGRAMS = ("vfio-pci", "uio_pci_generic", "igb_uio")  # drivers that give a card to a program, not to the kernel


class DeviceRequest(Struct, frozen=True):
    """The device that a device plugin of the runtime has chosen."""

    device_id: str = field(name="deviceID", default="")


class HostDeviceConf(NetConf, frozen=True, kw_only=True, rename="camel"):
    """The configuration."""

    device: str = ""
    hwaddr: str = ""
    kernelpath: str = ""
    pci_bus_id: str = field(name="pciBusID", default="")
    runtime_config: DeviceRequest = DeviceRequest()


class HostDevicePlugin(SingleLink[HostDeviceConf]):
    """The verbs of this type."""

    name = "host-device"
    kind = ""
    config = HostDeviceConf

    def prepare(self, call: Call[HostDeviceConf], _netns: NetnsRef) -> "_PreparedDevice":
        return _PreparedDevice(call.ifname, _find(call.config))

    def delete_foreign(self, call: Call[HostDeviceConf]) -> None:
        """Move a link back that the reference plugin moved; the link's alias is its name on the host."""
        from cni_plugins.addressing import Addressing

        Addressing(self._node, call).delete()
        if self._node.netns is None:
            return
        netns = attaching.netns_of(self._node, call)
        with Kernel() as kernel:
            kernel.lend(netns, self._node.netns)
            link = kernel.rtnl(netns).find_link(call.ifname)
            if link is None or not link.alias:
                return
            before = DeviceBefore(link.mac, link.permanent_mac, link.mtu, link.txqlen, 0, "", ())
            MovedDevice(device=check_ifname(link.alias), ifname=call.ifname, netns=netns, before=before).remove(kernel)


class _PreparedDevice(NamedTuple):
    ifname: str
    device: LinkInfo

    def link(self, pending: PendingAttachment, _mac: str) -> LinkPlan:
        device = self.device
        return LinkPlan(MovedDevice(device=device.ifname, ifname=self.ifname, netns=pending.netns), device.mac)


def _find(config: HostDeviceConf) -> LinkInfo:
    """Find the link of the host that *config* names.

    Of several keys one counts: ``device``, else ``hwaddr``, else ``kernelpath``, else the runtime's ``deviceID``, else
    ``pciBusID``.
    """
    pci, auxiliary = config.pci_bus_id, ""
    if device := config.runtime_config.device_id:
        pci, auxiliary = _by_id(device)
    with Kernel() as kernel:
        if config.device:
            return kernel.rtnl().get_link(check_ifname(config.device))
        if config.hwaddr:
            mac = check_mac(config.hwaddr)
            found = next((link for link in kernel.rtnl().links() if link.mac == mac), None)
            if found is None:
                raise ObjectMissing(f"failed to find physical interface: no link of the host has the MAC address {mac}")
            return found
        if config.kernelpath:
            path = os.path.normpath(config.kernelpath)
            if not path.startswith(_DEVICES):
                msg = f'kernel device path "{config.kernelpath}" must be absolute and begin with {_DEVICES}'
                raise CniError(Code.INVALID_CONFIG, msg)
            return kernel.rtnl().get_link(_in_folder(Path(path)))
        if pci:
            return kernel.rtnl().get_link(_of_card(pci))
        if auxiliary:
            return kernel.rtnl().get_link(_in_folder(_AUXILIARY / auxiliary))
    raise CniError(Code.INVALID_CONFIG, 'specify either "device", "hwaddr", "kernelpath" or "pciBusID"')


def _by_id(device: str) -> tuple[str, str]:
    """Tell whether *device* is a PCI address or an auxiliary device: (PCI address, auxiliary device), one of them empty."""
    if _BUS_ID.fullmatch(device) and device not in (".", ".."):
        if (_PCI / device).exists():
            return device, ""
        if (_AUXILIARY / device).exists():
            return "", device
    raise ObjectMissing(
        f"runtime config DeviceID {device} not found or unsupported; it is a PCI address or an auxiliary device"
    )


def _of_card(address: str) -> str:
    if not _BUS_ID.fullmatch(address) or address in (".", ".."):
        raise CniError(Code.INVALID_CONFIG, f'invalid pciBusID "{address}"', "such as 0000:00:1f.6")
    card = _PCI / address
    driver = (card / "driver").resolve().name
    if driver in _FOR_PROGRAMS:
        raise CniError(
            Code.UNSUPPORTED_FIELD,
            f"PCI device {address} is bound to {driver}",
            "a card that belongs to a program has no link to move; leave host-device out for it",
        )
    folders = [card, *sorted(card.glob("virtio*"))]
    return _in_folder(next((folder for folder in folders if (folder / "net").is_dir()), card))


def _in_folder(device: Path) -> str:
    try:
        return min(os.listdir(device / "net"))
    except (OSError, ValueError):
        raise ObjectMissing(f"failed to find network device in path {device}/net") from None
