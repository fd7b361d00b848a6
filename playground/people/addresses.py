"""IP addresses as text: parsing them, and which of them limits count as one."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

IN_BRACKETS = re.compile(r"\[([^\]]*)\](:\d+)?")
WITH_PORT = re.compile(r"([\d.]+):\d+")


def parse_ip(text: str | None) -> IPv4Address | IPv6Address | None:
    """The IP address in `text`, or None; blanks, quotes, brackets, a port or a zone may be around it.

    An IPv4 address that is written as IPv6 is returned as IPv4.
    """
    text = (text or "").strip().strip('"')
    if wrapped := IN_BRACKETS.fullmatch(text) or WITH_PORT.fullmatch(text):
        text = wrapped[1]
    try:
        ip = ip_address(text.split("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def limit_key(address: str) -> str:
    """What limits count an address as: itself, or the /64 network of an IPv6 one, since every household has a /64."""
    ip = parse_ip(address)
    if isinstance(ip, IPv6Address):
        return str(ip_network((ip, 64), strict=False))
    return str(ip or address or "")
