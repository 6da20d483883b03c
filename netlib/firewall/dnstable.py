"""The small table in a sandbox's netns that redirects queries to its resolver, set by netlink messages of our own.

Every sandbox gets it with its resolver, and nftables hardly ever gets anything else there. libnftables, which reads its files
and the ruleset first, took 0.6 ms of the 4 ms of a connect for these two rules; messages of our own take 0.15 ms. The commands
for the same are :func:`netlib.firewall.ruleset.dns_commands`. Numbers: ``linux/netfilter/nf_tables.h``.
"""

import socket
import struct
from functools import cache

from netlib.errors import FeatureMissing, ObjectMissing
from netlib.firewall.expressions import (
    DELRULE,
    DELTABLE,
    NETFILTER,
    NETWORK_HEADER,
    NEWCHAIN,
    NEWRULE,
    NEWTABLE,
    NFTABLES,
    TRANSPORT_HEADER,
    compare,
    expression,
    hooked_chain,
    load,
    number,
)
from netlib.firewall.objects import DnsRedirect
from netlib.firewall.ruleset import DNS_CHAIN, DNS_TABLE, check_redirect
from netlib.kernel.handle import Kernel
from netlib.kernel.netlink import APPEND, CREATE, NetlinkSocket, attribute, nest, text
from netlib.kernel.translate import doing
from netlib.model import NetnsRef

__all__ = ["DnsTable"]

_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)  # nfgenmsg
_TABLE_NAME = DNS_TABLE.removeprefix("ip ")
_IN_CHAIN = text(1, _TABLE_NAME) + text(2, DNS_CHAIN)  # NFTA_RULE_TABLE, NFTA_RULE_CHAIN
_LOCAL_OUT, _BEFORE_ROUTING = 3, -100  # NF_INET_LOCAL_OUT, NF_IP_PRI_NAT_DST
_L4PROTO = 16  # NFT_META_L4PROTO
_DNAT, _WITH_PORT = 1, 2  # NFT_NAT_DNAT, NF_NAT_RANGE_PROTO_SPECIFIED
_DNS_PORT = 53


class DnsTable:
    """The table of one netns.

    The socket stays open until :meth:`close`: the kernel closes a netfilter socket only when what was deleted is freed, 10 ms
    later, and other work can be done meanwhile.
    """

    def __init__(self, kernel: Kernel, netns: NetnsRef) -> None:
        self.netns = netns
        self._kernel = kernel
        self._socket: NetlinkSocket | None = None

    def ensure(self, redirect: DnsRedirect) -> None:
        """Set *redirect*, replacing an earlier one, in one transaction; ConfigError for an impossible redirection."""
        check_redirect(redirect)
        self._change(
            "set up",
            (NEWTABLE, CREATE, _HEADER + text(1, _TABLE_NAME)),
            (NEWCHAIN, CREATE, _HEADER + _chain()),
            (DELRULE, 0, _HEADER + _IN_CHAIN),  # every rule of the chain
            (NEWRULE, CREATE | APPEND, _HEADER + _IN_CHAIN + nest(4, _rule(redirect, socket.IPPROTO_UDP))),
            (NEWRULE, CREATE | APPEND, _HEADER + _IN_CHAIN + nest(4, _rule(redirect, socket.IPPROTO_TCP))),
        )

    def remove(self) -> None:
        """Delete the table; a no-op when it is gone."""
        table = _HEADER + text(1, _TABLE_NAME)
        self._change("remove", (NEWTABLE, CREATE, table), (DELTABLE, 0, table))

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _change(self, verb: str, *messages: tuple[int, int, bytes]) -> None:
        action = f"{verb} the redirection to the resolver in {self.netns.label}"
        if self._socket is None:
            with self._kernel.entered(self.netns), doing(action):
                self._socket = NetlinkSocket(NETFILTER)
        try:
            with doing(action):
                self._socket.transact(NFTABLES, messages)
        except ObjectMissing as error:  # not the table, which is made here: an expression or a chain type
            raise FeatureMissing(f"this kernel lacks a part of nf_tables (nat): {error}", error.errno) from error


@cache
def _chain() -> bytes:
    return hooked_chain(_TABLE_NAME, DNS_CHAIN, "nat", _LOCAL_OUT, _BEFORE_ROUTING)


def _rule(redirect: DnsRedirect, protocol: int) -> bytes:
    """``ip daddr ADDRESS PROTOCOL dport 53 dnat to ADDRESS:PORT``, in nft's own expressions and order."""
    port = expression("immediate", number(1, 2), nest(2, attribute(1, struct.pack("!H", redirect.port))))
    return _queries_to(redirect.address.packed, protocol) + port + _dnat()


@cache
def _queries_to(address: bytes, protocol: int) -> bytes:
    """Match queries to *address* only, and load it into register 1."""
    return b"".join(
        (
            load(NETWORK_HEADER, 16, 4),  # ip daddr
            compare(address),
            expression("meta", number(2, _L4PROTO), number(1, 1)),
            compare(bytes([protocol])),
            load(TRANSPORT_HEADER, 2, 2),  # dport
            compare(struct.pack("!H", _DNS_PORT)),
            expression("immediate", number(1, 1), nest(2, attribute(1, address))),
        )
    )


@cache
def _dnat() -> bytes:
    """Translate the destination to the address in register 1 and the port in register 2."""
    return expression("nat", *(number(*pair) for pair in ((1, _DNAT), (2, socket.AF_INET), (3, 1), (5, 2), (7, _WITH_PORT))))
