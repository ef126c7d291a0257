"""Which addresses and names are of the open internet: a table by hand, and Python's own opinion where it has one."""

from __future__ import annotations

import ipaddress
import random
from ipaddress import IPv4Address, IPv6Address

import pytest

from step_audio_gateway.public_addresses import is_public, is_public_name

NOT_PUBLIC = {
    "this machine": "127.0.0.1 127.255.255.254 0.0.0.0 0.1.2.3 ::1 ::",
    "private": "10.0.0.0 10.255.255.255 172.16.0.1 172.31.255.255 192.168.0.1 fc00::1 fd12:3456::1",
    "site-local": "fec0::1 feff:ffff::1",
    "link-local": "169.254.0.1 169.254.255.255 fe80::1 febf::1 fe80::1%eth0 2606:4700::1%eth0",
    "carriers'": "100.64.0.0 100.127.255.255",
    "documentation": "192.0.2.1 198.51.100.1 203.0.113.255 2001:db8::1 2001:db8:ffff::1 3fff::1 3fff:fff::1",
    "benchmarks": "198.18.0.1 198.19.255.255 2001:2::1",
    "multicast": "224.0.0.1 239.255.255.255 ff02::1 ff0e::1",
    "reserved": "240.0.0.1 255.255.255.255 192.0.0.1 192.0.0.170 192.88.99.1 4000::1 5f00::1 100::1 100:0:0:1::1",
    "clouds' metadata": "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192 fd00:ec2::254 "
    "fd20:ce::254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe",
    "IPv4, mapped": "::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:0:0 ::ffff:e000:1",
    "IPv4, compatible or translated": "::127.0.0.1 ::8.8.8.8 ::ffff:0:10.0.0.1 ::ffff:0:8.8.8.8",
    "IPv4 behind NAT64": "64:ff9b::127.0.0.1 64:ff9b::10.1.2.3 64:ff9b:1::a00:1 64:ff9b:1::808:808",
    "IPv4 in 6to4": "2002:7f00:1:: 2002:a00:1::1 2002:808:808::1",
    "IPv4 in Teredo": "2001:0:7f00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "IPv4 in ISATAP": "2606:4700::5efe:10.0.0.1 2606:4700:0:1:200:5efe:c0a8:101 2606:4700::5efe:8.8.8.8",
    "other protocols'": "2001:10::1 2001:20::1 2001:30::1 2001:1ff:ffff::1",
}
PUBLIC = (
    "8.8.8.8 1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 168.63.129.15 "
    "169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.0.3.0 192.88.98.255 192.167.255.255 "
    "192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2606:4700:4700::1111 "
    "2001:200::1 2001:4860:4860::8888 2001:db7:ffff::1 2001:db9::1 2003::1 3ffe:ffff::1 2a00:1450::5eff:10.0.0.1"
)


@pytest.mark.parametrize("address", [address for several in NOT_PUBLIC.values() for address in several.split()])
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC.split())
def test_addresses_that_are_public(address):
    assert is_public(address)


# Where this table is stricter than `ipaddress`, on purpose.
STRICTER = [
    ipaddress.ip_network(net)
    for net in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16", "2001::/23", "2002::/16", "3fff::/20")
]


def test_python_agrees():
    """`is_global` of a release of 2024 or later, multicast and what is reserved aside."""
    rng = random.Random(7)
    fours = [IPv4Address(rng.getrandbits(32)) for _ in range(4000)]
    fours += [IPv4Address(first << 24 | rng.getrandbits(8) << 16 | 9) for first in range(256) for _ in range(16)]
    sixes = [IPv6Address(rng.getrandbits(128)) for _ in range(2000)]
    sixes += [IPv6Address(first << 112 | rng.getrandbits(112)) for first in range(0x2000, 0x4000, 4)]
    for ip in (*fours, *sixes):
        if not any(ip.version == net.version and ip in net for net in STRICTER):
            reserved = ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False)
            assert is_public(str(ip)) == (ip.is_global and not reserved), ip


@pytest.mark.parametrize("text", ["", "a.example", "256.1.1.1", "1.2.3", "2130706433", "::g"])
def test_what_is_no_address(text):
    with pytest.raises(ValueError):
        is_public(text)


@pytest.mark.parametrize(
    "name",
    ["localhost", "a.localhost", "metadata.google.internal", "instance-data", "instance-data.ec2.internal", "x.local",
     "metadata", "metadata.goog", "metadata.tencentyun.com", "router.lan", "nas.home.arpa"],
)  # fmt: skip
def test_names_of_networks(name):
    assert not is_public_name(name)


@pytest.mark.parametrize(
    "name", ["a.example", "internal.example.com", "mymetadata.com", "localhost.example.com", "x.goog"]
)
def test_names_of_hosts(name):
    assert is_public_name(name)
