"""What is between the internet and the page: proxies, the allowlist, limits, headers, connections."""
