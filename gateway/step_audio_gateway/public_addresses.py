"""Which addresses and hosts are of the open internet. Our own table: Python's `ipaddress` changes its mind between
releases, and has neither site-local nor ISATAP addresses, nor those of clouds.

IANA's registries of special-purpose addresses as of 2026; RFC 4291 (IPv6: what is given out is within 2000::/3).
"""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

_NOT_PUBLIC_4 = [
    IPv4Network(net)
    for net in (
        "0.0.0.0/8",  # this network; 0.0.0.0 is this machine
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # of carriers (CGNAT); Alibaba's metadata, 100.100.100.200
        "127.0.0.0/8",  # this machine
        "168.63.129.16/32",  # Azure's own, within every machine of it
        "169.254.0.0/16",  # link-local: metadata of AWS, Google, Azure and others
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocols' own; Oracle's metadata, 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
]
_GIVEN_OUT_6 = IPv6Network("2000::/3")  # not: ::1, ::, link-local, site-local, private, multicast, discarded
_NOT_PUBLIC_6 = [
    IPv6Network(net)
    for net in (
        "2001::/23",  # protocols' own: Teredo, which embeds an IPv4 address, benchmarks, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which embeds an IPv4 address
        "3fff::/20",  # documentation
    )
]
_NAT64 = IPv6Network("64:ff9b::/96")  # what a network without IPv4 calls an IPv4 address
_ISATAP = (0x00005EFE, 0x02005EFE)  # in bits 64 to 95, before an IPv4 address

# Names of networks, not of hosts on the internet (RFC 6761, 6762, 8375; ICANN's .internal), and clouds' metadata.
_NOT_PUBLIC_NAMES = (
    "localhost", "local", "internal", "home.arpa", "localdomain", "lan", "intranet", "corp", "home", "private",
    "metadata.goog", "metadata.azure.com", "metadata.tencentyun.com", "metadata.packet.net",
    "metadata.platformequinix.com", "instance-data", "metadata",
)  # fmt: skip


def is_public(address: str) -> bool:
    """Also where it is an IPv4 address in IPv6's disguise. Raises ValueError for what is no address."""
    ip: IPv4Address | IPv6Address = ipaddress.ip_address(address)
    if isinstance(ip, IPv6Address):
        if ip.scope_id:
            return False
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = IPv4Address(int(ip) & 0xFFFFFFFF)
    if isinstance(ip, IPv4Address):
        return not any(ip in net for net in _NOT_PUBLIC_4)
    if ip not in _GIVEN_OUT_6 or int(ip) >> 32 & 0xFFFFFFFF in _ISATAP:
        return False
    return not any(ip in net for net in _NOT_PUBLIC_6)


def is_public_name(host: str) -> bool:
    """Lower case, without a dot at its end. What such a name stands for is looked at besides."""
    return not any(host == name or host.endswith(f".{name}") for name in _NOT_PUBLIC_NAMES)
