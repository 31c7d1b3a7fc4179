"""The VPN: devices, packets, what is set up in the kernel and undone, and hosts without us."""
