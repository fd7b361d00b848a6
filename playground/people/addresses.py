"""Network addresses as text: what is one, and which of them limits count as one."""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network


def parsed(text: str | None) -> IPv4Address | IPv6Address | None:
    """The IP address in `text`, or None; blanks, quotes, brackets, a port or a zone may be around it.

    An IPv4 address that is written in IPv6 is returned as IPv4.
    """
    text = (text or "").strip().strip('"')
    if found := re.fullmatch(r"\[([^\]]*)\](:\d+)?", text) or re.fullmatch(r"([\d.]+):\d+", text):
        text = found[1]
    try:
        ip = ip_address(text.split("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


def one_place(address: str) -> str:
    """What limits count an address as: itself, or the /64 of an IPv6 one, since every household has a whole /64."""
    ip = parsed(address)
    if isinstance(ip, IPv6Address):
        return str(ip_network((ip, 64), strict=False))
    return str(ip or address or "")
