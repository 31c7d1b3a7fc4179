"""Any SSH login as a browser proxy and a VPN; the SSH server of a jump box.

The map, from the outside in: ``cli`` reads the command line, ``client`` and ``server`` wire things
together, ``config`` reads configuration, ``proxy`` serves SOCKS clients, ``net`` moves bytes with
trio, ``socks``, ``policy`` and ``ssh`` are protocol cores without I/O, ``events`` and ``errors``
are what everybody may know. ARCHITECTURE.md shows the way of a byte.
"""

__version__ = "0.1.0"
